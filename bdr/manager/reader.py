"""Reading a file piece by piece: ranges, seeking, streaming, in bounded memory and without a connection held."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from bdr.errors import Corrupt, InvalidArgument
from bdr.reference import BinaryDataReference

# What one request to the storage asks for: large enough that requests are few, small enough that two of them (one
# being read, one being fetched ahead) cost little memory.
PIECE = 4 * 1024 * 1024

Fetch = Callable[[int, int], Coroutine[Any, Any, bytes]]


class BinaryDataReader:
    """A file being read; made by `open()`. Works like a binary file, with coroutines.

    Read from the beginning to the end, the bytes are compared with the SHA-256 that was recorded: if they differ,
    `Corrupt` is raised instead of the last piece, and from then on by every read. Who skips some is told nothing.
    A read that fails or is cancelled leaves the reader where it stood, so it may be tried again.
    """

    def __init__(self, reference: BinaryDataReference, checksum: bytes, fetch: Fetch) -> None:
        self.reference = reference
        self.size = reference.file_size
        self._checksum = checksum
        self._fetch = fetch
        self._position = 0
        self._piece = b""
        self._piece_at = 0
        self._next_at = 0
        self._ahead: tuple[int, asyncio.Task[bytes]] | None = None
        self._digest = hashlib.sha256()
        self._digested = 0
        self._corrupt = False
        self._closed = False
        self._one_at_a_time = asyncio.Lock()

    async def read(self, size: int = -1) -> bytes:
        """At most `size` bytes from where the reader stands, all that is left when negative, b"" at the end."""
        async with self._one_at_a_time:
            self._require_open()
            start = self._position
            try:
                return await self._read(size)
            except BaseException:
                self._position = start
                raise

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place, which may lie beyond the end; gives back where the reader stands now."""
        self._require_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        if whence not in base:
            raise InvalidArgument(f"seek: whence is {whence!r}; it must be 0 (start), 1 (here) or 2 (end).")
        if base[whence] + offset < 0:
            raise InvalidArgument(f"seek: position {base[whence] + offset} lies before the beginning of the file.")
        self._position = base[whence] + offset
        return self._position

    async def tell(self) -> int:
        """Where the reader stands, in bytes from the beginning."""
        self._require_open()
        return self._position

    async def close(self) -> None:
        """Let go of what was fetched; a closed reader reads no more."""
        self._closed = True
        self._piece = b""
        await self._drop_ahead()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self.read(PIECE):
            yield part

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidArgument("This reader is closed.")

    async def _read(self, size: int) -> bytes:
        left = max(self.size - self._position, 0)
        wanted = left if size < 0 else min(size, left)
        parts: list[bytes] = []
        while wanted > 0:
            part = await self._next(wanted)
            parts.append(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _next(self, wanted: int) -> bytes:
        self._require_open()
        if not 0 <= self._position - self._piece_at < len(self._piece):
            # Always from the same places, whatever was sought before: so that they can be digested in order.
            await self._load(self._position - self._position % PIECE)
        start = self._position - self._piece_at
        whole = start == 0 and wanted >= len(self._piece)
        part = self._piece if whole else self._piece[start : start + wanted]
        self._position += len(part)
        return part

    async def _load(self, offset: int) -> None:
        # Dropped before the next one comes: never three pieces at a time.
        self._piece = b""
        if self._ahead is not None and self._ahead[0] == offset:
            task, self._ahead = self._ahead[1], None
            piece = await task
        else:
            await self._drop_ahead()
            piece = await self._fetch(offset, min(PIECE, self.size - offset))
        # Only for who reads on: after a seek, what follows may not be wanted.
        if offset == self._next_at:
            self._fetch_ahead(offset + len(piece))
        self._next_at = offset + len(piece)
        await self._verify(offset, piece)
        self._piece, self._piece_at = piece, offset

    def _fetch_ahead(self, offset: int) -> None:
        if offset < self.size and not self._closed:
            fetched = asyncio.create_task(self._fetch(offset, min(PIECE, self.size - offset)))
            self._ahead = (offset, fetched)

    async def _drop_ahead(self) -> None:
        if self._ahead is not None:
            task, self._ahead = self._ahead[1], None
            task.cancel()
            # Waits for the end of it, whatever it was: its bytes are not wanted any more.
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _verify(self, offset: int, piece: bytes) -> None:
        if offset == 0:
            self._digest, self._digested = hashlib.sha256(), 0
        if offset == self._digested:
            # A copy: the thread goes on when the caller is cancelled, and the piece will come again.
            digest = self._digest.copy()
            await asyncio.to_thread(digest.update, piece)
            self._digest, self._digested = digest, offset + len(piece)
            self._corrupt |= self._digested == self.size and digest.digest() != self._checksum
        if self._corrupt:
            raise Corrupt(
                f"The object of '{self.reference.file_key}' holds other bytes than were stored: its SHA-256 is "
                f"{self._digest.hexdigest()}, recorded is {self._checksum.hex()}."
            )
