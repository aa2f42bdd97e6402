"""Small files of a folder, and parts of large ones, by threads past OpenDAL.

A call of OpenDAL costs more than all else that is done for a small file, and copies what it has read once more.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from opendal.exceptions import ConditionNotMatch

from bdr.settings import BinaryStorageConfig
from bdr.storage.durable import DirectorySync
from bdr.storage.patience import in_time
from bdr.threads import DaemonThreads

T = TypeVar("T")

# Above it the bytes cost more than the call does.
LARGEST = 1024 * 1024
# As streams are read; on a slow mount a longer part could take longer than a call has.
LARGEST_PART = 4 * 1024 * 1024
# More only take the interpreter from each other.
_THREADS = 16
# Those wait for the disk without it, and small files shall not wait for them.
_THREADS_FOR_PARTS = 64


class SmallFiles:
    """Files of up to 1 MiB below `root`, and parts of any; what OpenDAL writes is read here, and the other way round.

    What takes longer than `io_timeout` is given up, with ETIMEDOUT. A thread may still be about it then, and hang in
    the mount: a write that was begun may land later, one that was not begun never is.
    """

    def __init__(self, root: Path, config: BinaryStorageConfig) -> None:
        self._root = str(root)
        self._patience = config.io_timeout
        self._threads = DaemonThreads(min(config.concurrency, _THREADS))
        self._for_parts = DaemonThreads(min(config.concurrency, _THREADS_FOR_PARTS))

    async def write(self, path: str, data: bytes, folders: DirectorySync) -> bytes:
        """Write a file, with the folders above it; it and its name are durable when this gives back its SHA-256.

        Raises:
            ConditionNotMatch: there is one, told as OpenDAL does.
            OSError: what the operating system said.
        """
        return await self._in_time(self._threads, partial(self._write, path, data, folders))

    async def read(self, path: str) -> bytes | None:
        """The whole file; None when it is too large for this. OSError."""
        return await self._in_time(self._threads, partial(self._read, path))

    async def read_part(self, path: str, offset: int, length: int) -> bytes:
        """So many bytes from `offset`, at most 4 MiB; fewer where the file ends before. OSError."""
        return await self._in_time(self._for_parts, partial(self._read_part, path, offset, length))

    def close(self) -> None:
        """End the threads as soon as they have done what they were given."""
        self._threads.close()
        self._for_parts.close()

    async def _in_time(self, threads: DaemonThreads, work: Callable[[], T]) -> T:
        return await in_time(self._patience, threads.run(work))

    def _write(self, path: str, data: bytes, folders: DirectorySync) -> bytes:
        descriptor = self._new(path, folders)
        try:
            left = memoryview(data)
            while left:
                # A disk that becomes full takes a part first.
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folders.sync_here(path)
        return hashlib.sha256(data).digest()

    def _new(self, path: str, folders: DirectorySync) -> int:
        try:
            try:
                return self._created(path)
            except FileNotFoundError:
                # Before it is there: whoever finds it there then must not think that its name is durable.
                folders.forget(path)
                os.makedirs(os.path.dirname(f"{self._root}/{path}"), exist_ok=True)  # noqa: PTH103, PTH120 - see `_opened`
                return self._created(path)
        except FileExistsError as error:
            raise ConditionNotMatch(f"ConditionNotMatch (permanent) at write: {error.strerror}") from None

    def _created(self, path: str) -> int:
        return os.open(f"{self._root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _read(self, path: str) -> bytes | None:
        with self._opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            return None if size > LARGEST else _filled(descriptor, 0, size)

    def _read_part(self, path: str, offset: int, length: int) -> bytes:
        with self._opened(path) as descriptor:
            return _filled(descriptor, offset, length)

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        # No Path here: one costs more than the calls. What is no file, such as a pipe, shall keep nobody waiting.
        descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _filled(descriptor: int, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    # Some file systems give less than there is.
    parts, there = [data], len(data)
    while there < length and (more := os.pread(descriptor, length - there, offset + there)):
        parts.append(more)
        there += len(more)
    return b"".join(parts)
