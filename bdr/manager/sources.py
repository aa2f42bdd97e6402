"""Where the bytes of a store come from, brought to one shape: the beginning known, the rest still to be read."""

import asyncio
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from bdr.errors import InvalidArgument, IoError, PermissionDenied
from bdr.manager.description import HEAD_SIZE
from bdr.reference import MAX_NAME_LENGTH, BinaryDataMetadata

# Files are read, and large byte strings cut, in pieces of this size.
PIECE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Source:
    """Bytes to store.

    Attributes:
        total: how many there will be, when that is known.
        data: all of them, when they are few enough to be written in one piece.
        chunks: the bytes otherwise; an error when they are not as many as the metadata promised.
    """

    metadata: BinaryDataMetadata
    total: int | None
    data: bytes | None
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True)
class Content:
    """A source of which as much was taken as is needed to tell the type of the file.

    Attributes:
        head: the first 8 KiB.
        complete: whether `head` is all.
        data: all bytes, when they are few enough to be written in one piece.
        chunks: the bytes otherwise, `head` included.
    """

    head: bytes
    complete: bool
    data: bytes | None
    chunks: AsyncIterator[bytes]


def of_bytes(data: bytes, metadata: BinaryDataMetadata | None) -> Source:
    """A source of bytes in memory."""
    data = _checked(data)
    metadata = metadata or BinaryDataMetadata()
    if metadata.file_size not in (None, len(data)):
        raise _not_as_promised(metadata, f"{len(data)} bytes")
    return Source(metadata, len(data), data if len(data) <= PIECE else None, _pieces(data))


def of_stream(chunks: AsyncIterable[bytes], metadata: BinaryDataMetadata | None) -> Source:
    """A source of chunks, none of which is taken yet."""
    if not isinstance(chunks, AsyncIterable):
        raise InvalidArgument(
            f"store_stream takes an asynchronous iterable of bytes, such as an async generator, not "
            f"{type(chunks).__name__}; store_data takes bytes, store_file a path."
        )
    metadata = metadata or BinaryDataMetadata()
    return Source(metadata, metadata.file_size, None, _as_promised(chunks, metadata))


@asynccontextmanager
async def of_file(path: Path, metadata: BinaryDataMetadata | None) -> AsyncIterator[Source]:
    """A source that reads a file; name and time are the file's where the metadata has none."""
    with _readable(path):
        file = await _open(path)
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(f"{str(path)!r} is no regular file; read it and give what comes to store_stream.")
        own = {"file_name": _name(path), "last_modified": _modified(status)}
        said = (metadata or BinaryDataMetadata()).model_dump(exclude_none=True)
        described = BinaryDataMetadata.model_validate(own | said)
        yield Source(described, status.st_size, None, _as_promised(_pieces_of_file(file, path, status), described))
    finally:
        # In a thread: another one may still be reading, if the caller was cancelled, and closing waits for it.
        await asyncio.to_thread(file.close)


async def with_head(source: Source) -> Content:
    """Take as many chunks as are needed to tell the type of the file."""
    first: list[bytes] = []
    size = 0
    if source.data is None:
        async for chunk in source.chunks:
            first.append(chunk)
            size += len(chunk)
            if size > HEAD_SIZE:
                head = b"".join([*first[:-1], chunk[:HEAD_SIZE]])[:HEAD_SIZE]
                return Content(head, complete=False, data=None, chunks=_chained(first, source.chunks))
    data = b"".join(first) if source.data is None else source.data
    return Content(data[:HEAD_SIZE], complete=len(data) <= HEAD_SIZE, data=data, chunks=source.chunks)


def _checked(chunk: object) -> bytes:
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, bytearray | memoryview):
        return bytes(chunk)
    hint = "; encode the text first" if isinstance(chunk, str) else ""
    raise InvalidArgument(f"Only bytes can be stored, not {type(chunk).__name__}{hint}.")


def _not_as_promised(metadata: BinaryDataMetadata, found: str) -> InvalidArgument:
    return InvalidArgument(
        f"file_size says {metadata.file_size} bytes, but there were {found}; nothing was stored. "
        "Leave it out to take the size as it is."
    )


async def _as_promised(chunks: AsyncIterable[bytes], metadata: BinaryDataMetadata) -> AsyncIterator[bytes]:
    """The chunks; an error as soon as they are too many bytes, or at the end too few."""
    size = 0
    async for chunk in chunks:
        data = _checked(chunk)
        size += len(data)
        if metadata.file_size is not None and size > metadata.file_size:
            raise _not_as_promised(metadata, "more")
        yield data
    if metadata.file_size not in (None, size):
        raise _not_as_promised(metadata, f"{size} bytes")


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


async def _chained(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first.pop(0)
    async for chunk in rest:
        yield chunk


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except OSError as error:
        raise IoError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InvalidArgument(f"{str(path)!r} cannot be the path of a file: {error}.") from error


async def _open(path: Path) -> BinaryIO:
    opening = asyncio.ensure_future(asyncio.to_thread(_opened, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread goes on, and nobody takes the file from it.
        opening.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opening: asyncio.Future[BinaryIO]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _opened(path: Path) -> BinaryIO:
    # Without waiting: a pipe would keep the thread until somebody writes to it.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _name(path: Path) -> str:
    """The path as text that can be kept: bytes that are no UTF-8 are replaced, too long a folder is left out."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return name if len(name) <= MAX_NAME_LENGTH else name.rpartition("/")[2]


def _modified(status: os.stat_result) -> int | None:
    try:
        return int(datetime.fromtimestamp(status.st_mtime, UTC).timestamp())
    except (ValueError, OverflowError, OSError):
        # A file system may hold times that no calendar here does.
        return None


async def _pieces_of_file(file: BinaryIO, path: Path, began: os.stat_result) -> AsyncIterator[bytes]:
    with _readable(path):
        while chunk := await asyncio.to_thread(file.read, PIECE):
            yield chunk
    ended = os.fstat(file.fileno())
    if (began.st_size, began.st_mtime_ns) != (ended.st_size, ended.st_mtime_ns):
        raise IoError(
            f"{str(path)!r} was changed while it was being read; nothing was stored. Store it when it is complete."
        )
