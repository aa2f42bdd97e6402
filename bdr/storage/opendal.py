"""`OpenDalStorage`: the one implementation of `BinaryDataStorage`, for every service that OpenDAL has."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from bdr.errors import (
    Corrupt,
    FileNotFound,
    InvalidArgument,
    OperationError,
    StorageMismatch,
    StorageUnavailable,
)
from bdr.settings import BinaryStorageConfig
from bdr.storage.calls import Calls
from bdr.storage.deleting import FileDeletes, Outcomes, deleted_each
from bdr.storage.files import LARGEST, LARGEST_PART, SmallFiles
from bdr.storage.listing import listed, listed_folder
from bdr.storage.marker import decoded_marker, encoded_marker
from bdr.storage.moving import copied
from bdr.storage.operator import built_operator, prepared_folders
from bdr.storage.options import PART_SIZE, service_options
from bdr.storage.paths import MARKER_PATH, checked_path
from bdr.storage.pieces import SMALLEST_PIECE, alone, as_bytes, pieces_of
from bdr.storage.protocol import ListedObject, ObjectMetadata, StorageMarker, StoredObject
from bdr.storage.translate import Translator
from bdr.storage.undoing import Undoing
from bdr.storage.writer import StreamWriter

# Two already keep an upload busy; each more costs its 8 MiB.
_PARTS_AT_ONCE = 2
# Long enough for the runtime's threads to tell Python of the last call before an interpreter exits.
_LAST_TICK = 0.01


class OpenDalStorage:
    """Objects in one place, through OpenDAL. Made by `open_storage`, as making it touches the disk for `fs`."""

    def __init__(self, config: BinaryStorageConfig, *, name: str) -> None:
        self._service = service_options(config)
        self._translated = Translator(name, self._service.location, local=self._service.scheme == "fs")
        self._root = Path(self._service.options.get("root", ""))
        self._folders = prepared_folders(self._service, config, self._translated)
        self._operator = built_operator(self._service, config, self._translated)
        self._calls = Calls(self._translated, concurrency=config.concurrency, patience=config.timeout)
        self._undoing = Undoing(self.delete, self._translated, patience=config.io_timeout)
        self._can = self._operator.capability()
        self._files = None if self._folders is None else SmallFiles(self._root, config)
        # Redis alone of the tested services has no such condition: there the catalog's fresh paths must do.
        self._only_new = self._can.write_with_if_not_exists
        self._marker_seen = False

    @property
    def storage_type(self) -> str:
        """OpenDAL's name of the service, such as `fs` or `s3`."""
        return self._service.scheme

    @property
    def location(self) -> str:
        """Where it lies, for people: no secret in it."""
        return self._service.location

    @property
    def fingerprint(self) -> str:
        """A hash of the location (hex), equal for two configurations exactly when they mean the same place.

        A storage in memory lies nowhere else: every one has its own.
        """
        return self._service.fingerprint

    async def store(self, path: str, data: bytes) -> StoredObject:
        """Write `data` to `path`, which must be new; durable when it returns.

        Raises:
            InvalidArgument: `path` is malformed, or `data` is larger than the storage takes.
            OperationError: there is an object at `path` (not noticed on a service without conditional writes).
            StorageFull, StorageUnavailable, PermissionDenied, IoError: what the storage answered.
        """
        checked_path(path)
        data = as_bytes(data)
        if len(data) > PART_SIZE:
            return await self.store_stream(path, alone(data))
        return await self._written(path, data)

    async def store_stream(self, path: str, chunks: AsyncIterable[bytes]) -> StoredObject:
        """Write what `chunks` yields to `path`, which must be new, in bounded memory; durable when it returns.

        An exception from `chunks` leaves no object and is raised again. A service without uploads in parts (redis,
        memory) holds all of it in memory. Raises as `store` does.
        """
        checked_path(path)
        async with aclosing(pieces_of(chunks)) as pieces:
            first = await anext(pieces, b"")
            if len(first) < SMALLEST_PIECE:
                return await self._written(path, first)
            return await self._streamed(path, first, pieces)

    async def retrieve(self, path: str) -> bytes:
        """The whole object. FileNotFound when it is not there."""
        checked_path(path)
        try:
            return await self._calls.retried("read", path, lambda: self._whole(path))
        except FileNotFound:
            await self._confirm_absence()
            raise

    async def retrieve_range(self, path: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. FileNotFound; Corrupt when the object is shorter than that."""
        checked_path(path)
        if offset < 0 or length < 0:
            raise InvalidArgument(f"a range needs an offset and a length of at least 0, not {offset} and {length}")
        if length == 0:
            return await self._empty_range(path, offset)
        async with self._absence_confirmed():
            data = await self._calls.retried("read", path, lambda: self._part(path, offset, length))
        if len(data) != length:
            raise self._too_short(path, offset, length)
        return data

    async def get_metadata(self, path: str) -> ObjectMetadata:
        """Size and time of the object. FileNotFound when it is not there."""
        checked_path(path)
        async with self._absence_confirmed():
            found = await self._calls.retried("look up", path, lambda: self._operator.stat(path))
            if found.mode.is_dir():
                raise FileNotFound(f"could not look up {path} in {self._translated}: it is a folder, not an object")
        return ObjectMetadata(found.content_length, found.last_modified)

    async def exists(self, path: str) -> bool:
        """Whether the object is there; an unreachable storage raises rather than answers False."""
        try:
            await self.get_metadata(path)
        except FileNotFound:
            return False
        return True

    async def delete(self, path: str) -> None:
        """Delete the object; one that is not there is a success.

        Raises:
            StorageUnavailable: it cannot be reached, or it is a folder in which the marker was and is no longer.
        """
        checked_path(path)
        await self._calls.retried("delete", path, lambda: self._operator.delete(path))
        await self._removed(path)

    async def delete_many(self, paths: Sequence[str], *, concurrency: int, patience: timedelta) -> Outcomes:
        """Delete objects, `concurrency` at once; gives back, by path, None where it is gone, else why it may not be.

        What is gone stays gone after a power cut. A path is left out whose delete was not begun, or not made durable:
        because another one found the storage unavailable, or because `patience` was over. InvalidArgument when one is
        malformed.
        """
        for path in paths:
            checked_path(path)
        threads = min(concurrency, len(paths))
        until = time.monotonic() + patience.total_seconds()
        # One alone shares its sync with those of its neighbours.
        if self._folders is None or threads == 1:
            return await deleted_each(self.delete, paths, concurrency=threads, until=until)
        files = FileDeletes(self._root, self._folders, self._calls, until=until)
        return await files.run(paths, self.delete, concurrency=min(threads, self._calls.threads))

    @property
    def can_list(self) -> bool:
        """Whether the service can tell what it holds; Redis, for one, cannot."""
        return bool(self._can.list)

    def list_objects(self, folder: str = "", *, recursive: bool = True) -> AsyncIterator[ListedObject]:
        """All objects below `folder`, in no order; without `recursive` those right in it, and its folders.

        A folder that is not there is empty. Links of a file system are listed as they are, not followed.
        OperationError when the service cannot list; what the storage answers is raised also in the middle.
        """
        if folder:
            checked_path(folder)
        if not self.can_list:
            raise OperationError(f"{self._translated} cannot say what it holds: {self.storage_type} has no listing")
        if self._folders is not None:
            return listed_folder(self._root, self._calls, folder, recursive=recursive)
        return listed(self._operator, self._calls, folder, recursive=recursive)

    async def move(self, path: str, target: str) -> None:
        """Have the object at `target` instead, where nothing else may be; durable when it returns.

        FileNotFound when it is at neither; Corrupt when something of another size is at `target`: nothing is deleted.
        """
        checked_path(path)
        checked_path(target)
        if self._can.rename:
            await self._renamed(path, target)
        else:
            await copied(self, path, target, partial(self._copy, path, target) if self._can.copy else None)

    async def read_marker(self) -> StorageMarker | None:
        """The marker, or None when the storage answers and has none; StorageMismatch when it is not bdr's."""
        # An engine that is just creating it may be seen between the file and its content.
        marker = await self._calls.until(StorageMismatch, self._marker_now)
        if marker is not None:
            self._marker_seen = True
            if self._folders is not None:
                self._folders.marker = self._root / MARKER_PATH
        return marker

    async def write_marker(self, marker: StorageMarker) -> StorageMarker:
        """Write the marker unless there is one, durably; gives back the one that is there now.

        Two engines may come here at once. Where writes can be conditional the second one's is refused, and both read
        the first one's. Elsewhere (redis) the last write stays, and who read its own before is told by the next
        `read_marker`.
        """
        there = await self.read_marker()
        if there is not None:
            return there
        try:
            await self._put(MARKER_PATH, encoded_marker(marker))
        except OperationError:
            # Whoever was first may not have synced its name yet.
            await self._settled(MARKER_PATH)
        if (there := await self.read_marker()) is None:
            raise StorageUnavailable(f"the marker of {self._translated} was written, but is not there")
        return there

    async def close(self) -> None:
        """Wait for failed uploads to be undone, and refuse everything from then on."""
        await self._undoing.finished()
        self._calls.close()
        if self._files is not None:
            self._files.close()
        await asyncio.sleep(_LAST_TICK)

    async def _written(self, path: str, data: bytes) -> StoredObject:
        self._check_size(path, len(data))
        if self._files is not None and self._folders is not None and len(data) <= LARGEST:
            writing = partial(self._files.write, path, data, self._folders)
            return StoredObject(len(data), await self._calls.once("write", path, writing))
        if len(data) < SMALLEST_PIECE:
            # Hashing it takes less than handing it to somebody.
            checksum = hashlib.sha256(data).digest()
            await self._put(path, data)
        else:
            hashing = asyncio.to_thread(hashlib.sha256, data)
            checksum = (await asyncio.gather(hashing, self._put(path, data)))[0].digest()
        return StoredObject(len(data), checksum)

    async def _put(self, path: str, data: bytes) -> None:
        await self._calls.once("write", path, lambda: self._operator.write(path, data, if_not_exists=self._only_new))
        await self._settled(path)

    async def _whole(self, path: str) -> bytes:
        data = None if self._files is None else await self._files.read(path)
        return await self._operator.read(path) if data is None else data

    async def _part(self, path: str, offset: int, length: int) -> bytes:
        if self._files is not None and length <= LARGEST_PART:
            return await self._files.read_part(path, offset, length)
        return await self._operator.read(path, offset=offset, size=length)

    async def _streamed(self, path: str, first: bytes, rest: AsyncIterator[bytes]) -> StoredObject:
        writer = await self._opened(path)
        try:
            await self._append(writer, path, first)
            async for piece in rest:
                await self._append(writer, path, piece)
            stored = await writer.commit()
            await self._settled(path)
        except BaseException:
            if self._can.write_can_multi:
                await self._undoing.undo(writer, path)
            # Elsewhere nothing was sent yet: the service gets the object in one piece, when the writer is closed.
            raise
        return stored

    async def _opened(self, path: str) -> StreamWriter:
        opened = partial(self._operator.open, path, "wb", chunk=PART_SIZE, concurrent=_PARTS_AT_ONCE)
        file = await self._calls.once("write", path, lambda: opened(if_not_exists=self._only_new))
        return StreamWriter(file, path, self._translated, self._calls.slots)

    async def _append(self, writer: StreamWriter, path: str, piece: bytes) -> None:
        self._check_size(path, writer.size + len(piece))
        await writer.write(piece)

    async def _renamed(self, path: str, target: str) -> None:
        try:
            async with self._absence_confirmed():
                await self._calls.retried("move", path, lambda: self._operator.rename(path, target))
        except FileNotFound:
            # Another one, or a try whose answer was lost, has moved it.
            await self.get_metadata(target)
        await self._settled(target)
        await self._removed(path)

    async def _copy(self, path: str, target: str) -> None:
        await self._calls.retried("copy", path, lambda: self._operator.copy(path, target))

    async def _settled(self, path: str) -> None:
        if self._folders is not None:
            with self._translated("sync the folder of", path):
                await self._folders.sync(path)

    async def _removed(self, path: str) -> None:
        if self._folders is not None:
            # The object's folder may never have been made.
            with suppress(FileNotFound), self._translated("sync the folder of", path):
                await self._folders.sync_removed(path)

    async def _empty_range(self, path: str, offset: int) -> bytes:
        # OpenDAL answers an empty range without asking whether the object is there.
        if offset > (await self.get_metadata(path)).size:
            raise self._too_short(path, offset, 0)
        return b""

    def _too_short(self, path: str, offset: int, length: int) -> Corrupt:
        return Corrupt(f"{path} in {self._translated} ends before the range of {length} bytes from {offset} does")

    def _check_size(self, path: str, size: int) -> None:
        largest = self._service.max_object_size
        if largest is not None and size > largest:
            raise InvalidArgument(
                f"{path} is too large for {self._translated}, which takes objects of up to {largest} bytes "
                "(its option `max_object_size`)"
            )

    @asynccontextmanager
    async def _absence_confirmed(self) -> AsyncIterator[None]:
        """Believe FileNotFound only while the storage itself is there.

        The folder of an unmounted share is empty, an S3 service answers a HEAD in a missing bucket with 404, and a
        Redis that was restarted empty has no keys: in each of them no object is lost.
        """
        try:
            yield
        except FileNotFound:
            await self._confirm_absence()
            raise

    async def _confirm_absence(self) -> None:
        if await self._marker_text() is None and self._marker_seen:
            raise StorageUnavailable(
                f"the marker of {self._translated} has disappeared: it is not mounted, or was emptied or replaced"
            ) from None

    async def _marker_now(self) -> StorageMarker | None:
        text = await self._marker_text()
        return None if text is None else decoded_marker(text, self._translated)

    async def _marker_text(self) -> bytes | None:
        try:
            return await self._calls.retried("read", MARKER_PATH, lambda: self._whole(MARKER_PATH))
        except FileNotFound:
            return None
