"""An object to another path of its storage, so that at every moment one of the two is whole."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from bdr.errors import Corrupt, FileNotFound
from bdr.storage.pieces import LARGEST_PIECE
from bdr.storage.protocol import BinaryDataStorage

# S3 copies no larger object in one call.
LARGEST_COPY = 5 * 1024**3

Copy = Callable[[], Awaitable[None]]


async def copied(storage: BinaryDataStorage, path: str, target: str, copy: Copy | None) -> None:
    """Copy, compare the sizes, delete: what was interrupted is done again, or found done.

    The content of a path never changes, so two that do this at once do the same twice. Who is second finds the copy
    whole, or the object gone because the first had found its copy whole. What is at the target is never deleted: it
    may be the last that is left.

    Args:
        copy: the service's own; None streams the bytes through this process.
    """
    size = await _size_of(storage, path)
    if size is None:
        await storage.get_metadata(target)
        return
    if await _size_of(storage, target) is None:
        with suppress(FileNotFound):
            if copy is not None and size <= LARGEST_COPY:
                await copy()
            else:
                await storage.store_stream(target, _pieces(storage, path, size))
    # fail point: move.copied
    found = await _size_of(storage, target)
    if found != size:
        raise Corrupt(
            f"{path} has {size} bytes in {storage.location}, what is at {target} has {found}; neither was deleted"
        )
    await storage.delete(path)


async def _pieces(storage: BinaryDataStorage, path: str, size: int) -> AsyncIterator[bytes]:
    for offset in range(0, size, LARGEST_PIECE):
        yield await storage.retrieve_range(path, offset, min(LARGEST_PIECE, size - offset))


async def _size_of(storage: BinaryDataStorage, path: str) -> int | None:
    try:
        return (await storage.get_metadata(path)).size
    except FileNotFound:
        return None
