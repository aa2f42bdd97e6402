"""Reading: from a key to its place, from the place to the bytes, and what it means when they are not there."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import operation, reference
from bdr.catalog.base import AnyRow
from bdr.catalog.reference import Location
from bdr.errors import Corrupt, FileNotFound, Gone, Lost
from bdr.keys import MAX_KEY_LENGTH, is_file_key
from bdr.manager.cache import ByteCache
from bdr.manager.description import as_reference
from bdr.manager.engine import Engine
from bdr.manager.explanation import absence_told_by
from bdr.manager.operations import RunningOperation
from bdr.manager.reader import PIECE, BinaryDataReader
from bdr.settings import StorageType
from bdr.storage.protocol import BinaryDataStorage

# Hashing what is smaller costs less than handing it to a thread.
_HASHED_INLINE = 1024 * 1024

T = TypeVar("T")


def not_found(key: str) -> FileNotFound:
    """The error for a key that no reference has."""
    shown = key if len(key) <= MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}…"
    return FileNotFound(f"There is no reference {shown!r} in the catalog.")


async def absent(engine: Engine, key: str) -> FileNotFound:
    """The error for a key that no reference has, saying which absence it is: Gone, StillStoring, or never known."""
    return (await all_absent(engine, [key]))[0]


async def all_absent(engine: Engine, keys: Sequence[str]) -> list[FileNotFound]:
    """As `absent`, an error for each of `keys`."""
    # Checked here: a NUL byte, for one, would be an error of the database.
    known = [key for key in keys if is_file_key(key)]
    if not known:
        return [not_found(key) for key in keys]
    async with engine.database.reading() as connection:
        return await absences(connection, keys, known)


async def absence(connection: AsyncConnection, key: str) -> FileNotFound:
    """As `absent`, for a well-formed key."""
    return (await absences(connection, [key], [key]))[0]


async def absences(connection: AsyncConnection, keys: Sequence[str], known: Sequence[str]) -> list[FileNotFound]:
    """An error for each of `keys`, by one look into the records for those that are well-formed, the `known`."""
    ends = await operation.newest_ends(connection, known)
    return [absence_told_by(ends[key]) if key in ends else not_found(key) for key in keys]


async def locate(engine: Engine, key: str) -> Location:
    """Where the bytes of a key lie, as the catalog says now; FileNotFound when there is no such reference."""
    engine.require_open()
    # Checked here: a NUL byte, for one, would be an error of the database.
    if is_file_key(key):
        mark = engine.locations.mark()
        found = await reference.resolve(engine.database, [key])
        if key in found:
            engine.locations.put(key, found[key], mark)
            return found[key]
    raise await absent(engine, key)


async def whole_row(engine: Engine, key: str) -> AnyRow:
    """All columns of a reference, with its blob's place; FileNotFound when there is no such reference."""
    engine.require_open()
    if is_file_key(key):
        async with engine.database.reading() as connection:
            found = await reference.details(connection, [key])
        if key in found:
            return found[key]
    raise await absent(engine, key)


def location_of(row: AnyRow) -> Location:
    """Where the bytes of a whole row lie."""
    return Location(row.blob_id, row.storage_name, row.object_path, row.file_size, row.checksum, row.ref_count)


async def fetch(
    engine: Engine, key: str, location: Location, read: Callable[[BinaryDataStorage, str], Awaitable[T]]
) -> T:
    """Read from where the bytes lie; when they are not there, the catalog is asked again before anything is said.

    A reader resolves without a lock, or goes by what it remembers. If a delete commits after that, the object may be
    gone when it is read: the second look finds no row, and the answer is Gone. If the row has a new place, that is
    tried: it was moved, and each further try needs another move. If it still means the same place, the object is lost.
    """
    while True:
        try:
            return await read(engine.storage(location.storage_name), location.object_path)
        except FileNotFound as error:
            location = await _moved(engine, key, location, error)


async def _moved(engine: Engine, key: str, location: Location, error: FileNotFound) -> Location:
    """The new place of what was not found at `location`; Gone or Lost when there is none."""
    try:
        again = await locate(engine, key)
    except FileNotFound:
        engine.locations.drop([location.blob_id])
        raise Gone(f"The reference {key!r} was deleted while it was being read.") from error
    if (again.storage_name, again.object_path) == (location.storage_name, location.object_path):
        raise Lost(
            f"The object of {key!r} is not in storage '{location.storage_name}' "
            f"({engine.storage(location.storage_name).location}, path {location.object_path}), though the catalog "
            "holds the reference."
        ) from error
    return again


class Retrievals:
    """Reads from the storages and the cache; an operation that reached a storage is recorded."""

    def __init__(self, engine: Engine, cache: ByteCache) -> None:
        self._engine = engine
        self.cache = cache

    async def whole(self, key: str, location: Location, running: RunningOperation) -> bytes:
        """The whole file, verified; of calls that want it at once, one reads it, where there is a cache."""
        if self._engine.storage(location.storage_name).storage_type == StorageType.MEMORY:
            return await self._read(key, location, running)
        data = await self.cache.get(location.blob_id, location.size, lambda: self._read(key, location, running))
        if not running.recorded:
            running.advance(len(data))
        return data

    async def part(self, key: str, location: Location, running: RunningOperation, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, which must lie in the file."""
        if length == 0:
            return b""
        running.recorded = True
        data = await fetch(
            self._engine, key, location, lambda storage, path: storage.retrieve_range(path, offset, length)
        )
        running.advance(len(data))
        return data

    @asynccontextmanager
    async def reader(self, row: AnyRow, running: RunningOperation) -> AsyncIterator[BinaryDataReader]:
        """A reader of the file of a whole row."""
        reference, location = as_reference(row), location_of(row)

        async def piece(offset: int, length: int) -> bytes:
            return await self.part(reference.file_key, location, running, offset, length)

        reader = BinaryDataReader(reference, location.checksum, piece)
        try:
            yield reader
        finally:
            await reader.close()

    async def _read(self, key: str, location: Location, running: RunningOperation) -> bytes:
        if location.size > PIECE:
            return await self._read_in_pieces(key, running)
        running.recorded = True
        data = await fetch(self._engine, key, location, lambda storage, path: storage.retrieve(path))
        running.advance(len(data))
        await verify(key, location, data)
        return data

    async def _read_in_pieces(self, key: str, running: RunningOperation) -> bytes:
        # So that there is progress to show, and that a piece, not the whole, is tried again.
        row = await whole_row(self._engine, key)
        async with self.reader(row, running) as reader:
            data = await reader.read()
        there = await fetch(self._engine, key, location_of(row), lambda storage, path: storage.get_metadata(path))
        require_size(key, location_of(row), there.size)
        return data


def require_size(key: str, location: Location, size: int) -> None:
    """Raise Corrupt unless the object has as many bytes as were stored."""
    if size != location.size:
        raise Corrupt(f"The object of {key!r} has {size} bytes; {location.size} were stored.")


async def verify(key: str, location: Location, data: bytes) -> None:
    """Raise Corrupt unless `data` is what was stored."""
    require_size(key, location, len(data))
    small = len(data) < _HASHED_INLINE
    digest = hashlib.sha256(data) if small else await asyncio.to_thread(hashlib.sha256, data)
    if digest.digest() != location.checksum:
        raise Corrupt(
            f"The object of {key!r} holds other bytes than were stored: its SHA-256 is {digest.hexdigest()}, "
            f"recorded is {location.checksum.hex()}."
        )
