"""One streamed write: in order, hashed on the way, and either committed or undone."""

import asyncio
import hashlib
from typing import Any

from opendal.file import AsyncFile

from bdr.errors import OperationError
from bdr.storage.protocol import StoredObject
from bdr.storage.translate import Translator


class StreamWriter:
    """Pieces into an open file of OpenDAL, whose `async with` would commit on an exception and which cannot abort."""

    def __init__(self, file: AsyncFile, path: str, translated: Translator, slots: asyncio.Semaphore) -> None:
        self._file = file
        self._path = path
        self._translated = translated
        self._slots = slots
        self._digest = hashlib.sha256()
        self._size = 0
        # Any: whatever OpenDAL gives back, nobody looks at it.
        self._in_flight: asyncio.Future[Any] | None = None
        self._hashing: asyncio.Future[None] | None = None
        self._closing = False
        self.path_was_taken = False

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    async def write(self, piece: bytes) -> None:
        """Write one piece; it is hashed meanwhile, and still may be while the next one is made and written."""
        async with self._slots:
            await self._hashed()
            written = self._in_flight = asyncio.ensure_future(self._file.write(piece))
            self._hashing = asyncio.ensure_future(asyncio.to_thread(self._digest.update, piece))
            await self._finished(written)
        self._size += len(piece)

    async def commit(self) -> StoredObject:
        """Complete the object; it is there when this returns."""
        async with self._slots:
            await self._hashed()
            self._closing = True
            closed = self._in_flight = asyncio.ensure_future(self._file.close())
            await self._finished(closed)
        return StoredObject(self._size, self._digest.digest())

    async def complete(self) -> None:
        """After a failure: let the call in flight end, then complete the object, so that no part of it is left over.

        Raises the errors of both.
        """
        if self._in_flight is not None:
            await asyncio.wait({self._in_flight})
        # Nobody wants the digest any more, whatever became of it.
        self._hashing = None
        if not self._closing:
            await self.commit()

    async def _hashed(self) -> None:
        # Not awaited itself: it goes on when the caller is cancelled, and the object may have to be completed after it.
        if self._hashing is not None:
            await asyncio.wait({self._hashing})
            # There may have been no thread for it: the digest would be another one.
            self._hashing.result()

    async def _finished(self, call: asyncio.Future[Any]) -> None:
        # Shielded, because a cancelled call goes on unseen, and the object must not be touched while it does.
        try:
            with self._translated("write", self._path):
                await asyncio.shield(call)
        except OperationError:
            self.path_was_taken = True
            raise
