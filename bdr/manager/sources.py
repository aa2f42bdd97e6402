"""Where the bytes of a store come from, brought to one shape: the first 8 KiB known, the rest still to be read."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bdr.errors import InvalidArgument, IoError
from bdr.manager.description import HEAD_SIZE
from bdr.reference import BinaryDataMetadata

# Files are read, and large byte strings cut, in pieces of this size.
PIECE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Source:
    """Bytes to store.

    Attributes:
        total: how many there will be, when that is known.
        head: the first 8 KiB.
        complete: whether `head` is all.
        data: all bytes, when they were few enough to be written in one piece.
        chunks: the bytes, `head` included, otherwise.
    """

    metadata: BinaryDataMetadata
    total: int | None
    head: bytes
    complete: bool
    data: bytes | None = None
    chunks: AsyncIterator[bytes] | None = None


def _checked(chunk: object) -> bytes:
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, bytearray | memoryview):
        return bytes(chunk)
    hint = "; encode the text first" if isinstance(chunk, str) else ""
    raise InvalidArgument(f"Only bytes can be stored, not {type(chunk).__name__}{hint}.")


def require_size(metadata: BinaryDataMetadata, size: int) -> None:
    """Raise InvalidArgument when the metadata promised another size."""
    if metadata.file_size is not None and metadata.file_size != size:
        raise InvalidArgument(
            f"file_size says {metadata.file_size} bytes, but there were {size}; nothing was stored. "
            "Leave it out to take the size as it is."
        )


def of_bytes(data: bytes, metadata: BinaryDataMetadata | None) -> Source:
    """A source of bytes in memory."""
    data = _checked(data)
    metadata = metadata or BinaryDataMetadata()
    require_size(metadata, len(data))
    small = len(data) <= PIECE
    return Source(
        metadata,
        total=len(data),
        head=data[:HEAD_SIZE],
        complete=len(data) <= HEAD_SIZE,
        data=data if small else None,
        chunks=None if small else _pieces(data),
    )


async def of_stream(
    chunks: AsyncIterable[bytes], metadata: BinaryDataMetadata | None, total: int | None = None
) -> Source:
    """A source of chunks; as many are taken now as are needed to tell the type of the file."""
    metadata = metadata or BinaryDataMetadata()
    rest = aiter(chunks)
    first: list[bytes] = []
    ended = False
    while sum(map(len, first)) < HEAD_SIZE and not ended:
        try:
            first.append(_checked(await anext(rest)))
        except StopAsyncIteration:
            ended = True
    head = b"".join(first)
    return Source(
        metadata,
        total=metadata.file_size if total is None else total,
        head=head[:HEAD_SIZE],
        complete=ended and len(head) <= HEAD_SIZE,
        data=head if ended else None,
        chunks=None if ended else _chained(first, rest),
    )


async def of_file(path: Path, metadata: BinaryDataMetadata | None) -> Source:
    """A source that reads a file; name and time are the file's where the metadata has none."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
        status = await asyncio.to_thread(path.stat)
    except OSError as error:
        raise IoError(f"{path} cannot be read: {error.strerror or error}.") from error
    own = {"file_name": str(path), "last_modified": int(status.st_mtime)}
    said = (metadata or BinaryDataMetadata()).model_dump(exclude_none=True)
    return await of_stream(_file(file, path), BinaryDataMetadata.model_validate(own | said), total=status.st_size)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


async def _chained(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first.pop(0)
    async for chunk in rest:
        yield _checked(chunk)


async def _file(file: BinaryIO, path: Path) -> AsyncIterator[bytes]:
    with file:
        while True:
            try:
                chunk = await asyncio.to_thread(file.read, PIECE)
            except OSError as error:
                raise IoError(f"{path} cannot be read: {error.strerror or error}.") from error
            if not chunk:
                return
            yield chunk
