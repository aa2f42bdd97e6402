"""A storage as fsck asks it: many objects at once, and every trouble told apart from one of the catalog."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TypeVar

from bdr.errors import BinaryStorageError, Corrupt, FileNotFound, InvalidArgument
from bdr.manager.engine import Engine
from bdr.manager.reader import PIECE
from bdr.storage.paths import MARKER_PATH, checked_path
from bdr.storage.protocol import BinaryDataStorage, ListedObject

K = TypeVar("K")
T = TypeVar("T")


class UnknowableError(Exception):
    """The storage gave no answer that can be relied on; the text says why."""


class Probe:
    """Questions to one storage; UnknowableError where it does not answer."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._settings = engine.settings.fsck

    @property
    def can_list(self) -> bool:
        """Whether it can tell what it holds."""
        return self._storage().can_list

    async def verify(self) -> None:
        """See that the storage is the right one, now: its marker says so."""
        self._engine.require_open()
        try:
            await self._engine.verify(self._name)
        except BinaryStorageError as error:
            raise UnknowableError(str(error)) from error

    async def listed(self, folder: str, *, recursive: bool = True) -> AsyncIterator[list[ListedObject]]:
        """What is below a folder, a batch at a time."""
        batch: list[ListedObject] = []
        try:
            async for found in self._storage().list_objects(folder, recursive=recursive):
                batch.append(found)
                if len(batch) == self._settings.batch_size:
                    yield batch
                    batch = []
        except BinaryStorageError as error:
            raise UnknowableError(str(error)) from error
        yield batch

    async def sizes(self, paths: Collection[str]) -> dict[str, int | None]:
        """The size of each object now; None for one that is not there.

        That one is not there is believed only while the marker is: see `OpenDalStorage.get_metadata`.
        """
        return await side_by_side(paths, self._size, self._settings.concurrency)

    async def digests(
        self, sizes: dict[str, int], advance: Callable[[int], None] = lambda _count: None
    ) -> dict[str, bytes | None]:
        """The SHA-256 of each object's first bytes, as many as given; None when they are not there or not so many."""

        async def digest(path: str) -> bytes | None:
            return await self._digest(path, sizes[path], advance)

        return await side_by_side(sizes, digest, self._settings.reads)

    async def marked_above(self, path: str, known: dict[str, bool]) -> str | None:
        """The folder above an object that has a storage's marker in it: what is below belongs to that storage.

        `known` remembers what was found of each folder.
        """
        folders = path.rstrip("/").split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            if folder not in known:
                known[folder] = is_plain(folder) and await self._size(f"{folder}/{MARKER_PATH}") is not None
            if known[folder]:
                return folder
        return None

    def _storage(self) -> BinaryDataStorage:
        try:
            return self._engine.storage(self._name)
        except BinaryStorageError as error:
            raise UnknowableError(str(error)) from error

    async def _size(self, path: str) -> int | None:
        try:
            return (await self._storage().get_metadata(path)).size
        except FileNotFound:
            return None
        except BinaryStorageError as error:
            raise UnknowableError(str(error)) from error

    async def _digest(self, path: str, size: int, advance: Callable[[int], None]) -> bytes | None:
        digest = hashlib.sha256()
        try:
            for offset in range(0, size, PIECE):
                piece = await self._storage().retrieve_range(path, offset, min(PIECE, size - offset))
                await asyncio.to_thread(digest.update, piece)
                advance(len(piece))
        except (FileNotFound, Corrupt):
            return None
        except BinaryStorageError as error:
            raise UnknowableError(str(error)) from error
        return digest.digest()


def is_plain(path: str) -> bool:
    """Whether bdr can name this; what has any other name was not put there by it."""
    try:
        checked_path(path)
    except InvalidArgument:
        return False
    return True


async def side_by_side(keys: Collection[K], work: Callable[[K], Awaitable[T]], concurrency: int) -> dict[K, T]:
    """The result of `work` for each; the first trouble ends all."""
    queue = iter(keys)
    results: dict[K, T] = {}
    troubles: list[UnknowableError] = []

    async def worker() -> None:
        for key in queue:
            if troubles:
                return
            try:
                results[key] = await work(key)
            except UnknowableError as trouble:
                troubles.append(trouble)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(concurrency, len(keys))):
            workers.create_task(worker())
    if troubles:
        raise troubles[0]
    return results
