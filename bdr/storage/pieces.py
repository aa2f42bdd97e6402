"""Pieces of a stream, neither so small that each costs a call nor so large that they cost memory."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator

from bdr.errors import InvalidArgument

MiB = 1024 * 1024
SMALLEST_PIECE = MiB
LARGEST_PIECE = 8 * MiB


def as_bytes(data: object) -> bytes:
    """`data` as bytes, which OpenDAL takes without a copy; InvalidArgument when it is not binary."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise InvalidArgument(f"binary data must be bytes, bytearray or memoryview, not {type(data).__name__}")


async def pieces_of(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in pieces of 1 to 8 MiB; only the last one may be smaller, and none is empty."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(as_bytes(chunk))
        size += len(held[-1])
        if size >= SMALLEST_PIECE:
            whole, size = b"".join(held), 0
            held.clear()
            for piece in slices(whole):
                yield piece
    if size:
        yield b"".join(held)


def slices(data: bytes) -> Iterator[bytes]:
    """Equal parts of at most 8 MiB; all of `data`, uncopied, when it is no larger."""
    count = -(-len(data) // LARGEST_PIECE)
    step = -(-len(data) // count) if count else 1
    for start in range(0, len(data), step):
        yield data[start : start + step]


async def alone(data: bytes) -> AsyncIterator[bytes]:
    """A stream of one piece."""
    yield data
