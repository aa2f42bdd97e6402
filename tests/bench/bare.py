"""The floors: PostgreSQL through bare asyncpg, files through bare OpenDAL."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
from opendal import AsyncOperator

from bdr.keys import encode, new_id, object_path
from bdr.storage.durable import DirectorySync

COUNT: Final = """
UPDATE bdr.binary_data_reference
SET ref_count = ref_count + $2::int, last_access_at = greatest(last_access_at, clock_timestamp())
WHERE file_key = $1 RETURNING ref_count
"""
TABLE: Final = """
CREATE TABLE bare_file (file_key text PRIMARY KEY, object_path text NOT NULL, file_size bigint NOT NULL,
    checksum bytea NOT NULL, file_name text, mime_kind text, created_at timestamptz NOT NULL DEFAULT now())
"""
INSERT: Final = """
INSERT INTO bare_file (file_key, object_path, file_size, checksum, file_name, mime_kind) VALUES ($1, $2, $3, $4, $5, $6)
"""
_CHECKSUM: Final = bytes(32)


class Statement:
    """One prepared statement on several connections, each use a transaction by itself.

    A pool of asyncpg's own also resets a connection each time that it comes back, which costs a round trip.
    """

    def __init__(self, prepared: list[Any]) -> None:
        self._free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for one in prepared:
            self._free.put_nowait(one)

    async def __call__(self, *arguments: object) -> Any:
        """Run it on the next connection that is free; gives back the first value."""
        statement = await self._free.get()
        try:
            return await statement.fetchval(*arguments)
        finally:
            self._free.put_nowait(statement)


@asynccontextmanager
async def prepared(url: str, sql: str, connections: int) -> AsyncIterator[Statement]:
    """The statement, on so many connections."""
    opened = [await asyncpg.connect(url) for _ in range(connections)]
    try:
        yield Statement([await one.prepare(sql) for one in opened])
    finally:
        for one in opened:
            await one.close()


class BareFiles:
    """Files in one folder, as durable as bdr's: OpenDAL syncs a file, this the folders that hold its name."""

    def __init__(self, root: Path) -> None:
        self.operator = AsyncOperator("fs", root=str(root))
        self.folders = DirectorySync(root)

    async def write(self, data: bytes) -> str:
        """A new file; gives back its path."""
        path = object_path(new_id())
        await self.operator.write(path, data, if_not_exists=True)
        await self.folders.sync(path)
        return path

    async def read(self, path: str) -> bytes:
        """The whole file."""
        return await self.operator.read(path)

    async def delete(self, path: str) -> None:
        """Remove it; the folder is not synced."""
        await self.operator.delete(path)

    async def store(self, data: bytes, insert: Statement) -> None:
        """A new file, and a row for it when it is there."""
        path = await self.write(data)
        await insert(encode(new_id()), path, len(data), _CHECKSUM, "report.pdf", "application/pdf")

    async def store_stream(self, piece: bytes, pieces: int, *, concurrent: int) -> str:
        """Write a piece so many times, with its SHA-256 beside; gives back the path."""
        path = object_path(new_id())
        digest = hashlib.sha256()
        file = await self.operator.open(path, "wb", chunk=len(piece), concurrent=concurrent, if_not_exists=True)
        for _ in range(pieces):
            await asyncio.gather(file.write(piece), asyncio.to_thread(digest.update, piece))
        await file.close()
        await self.folders.sync(path)
        return path

    async def get_stream(self, path: str, *, size: int, piece: int, concurrent: int) -> None:
        """Read a file of `size` bytes from end to end, each piece hashed while the next one is read."""
        digest = hashlib.sha256()
        file = await self.operator.open(path, "rb", chunk=piece, concurrent=concurrent)
        hashing = asyncio.ensure_future(asyncio.sleep(0))
        left = size
        while left:
            data = await file.read(piece)
            await hashing
            hashing = asyncio.ensure_future(asyncio.to_thread(digest.update, data))
            left -= len(data)
        await hashing
        await file.close()
