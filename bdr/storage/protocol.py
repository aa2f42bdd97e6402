"""What bdr asks of a storage; `OpenDalStorage` is the implementation, the conformance suite the definition."""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from bdr.errors import BinaryStorageError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What was written: its size in bytes and its SHA-256 digest (32 bytes)."""

    size: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """What the storage itself says of an object."""

    size: int
    last_modified: datetime | None


@dataclass(frozen=True, slots=True)
class ListedObject:
    """What a listing says is there: an object and its size in bytes, or a folder, whose path ends with '/'.

    The path is as the storage has it: what others have put there may have names that bdr itself refuses.
    """

    path: str
    size: int | None


@dataclass(frozen=True, slots=True)
class StorageMarker:
    """The object `.bdr-storage`: whose storage this is."""

    catalog_id: str
    storage_name: str


class BinaryDataStorage(Protocol):
    """Objects by path. Every method raises the errors of `bdr.errors`, nothing else.

    A path is written at most once, and by nobody but bdr; `store` and `store_stream` never retry. When they raise or
    are cancelled, the object may or may not be there, now or a little later: the caller's catalog row owns it.
    """

    @property
    def storage_type(self) -> str:
        """OpenDAL's name of the service, such as `fs` or `s3`."""

    @property
    def location(self) -> str:
        """Where it lies, for people: no secret in it."""

    @property
    def fingerprint(self) -> str:
        """A hash of the location (hex), equal for two configurations exactly when they mean the same place."""

    async def store(self, path: str, data: bytes) -> StoredObject:
        """Write `data` to `path`, which must be new; durable when it returns."""

    async def store_stream(self, path: str, chunks: AsyncIterable[bytes]) -> StoredObject:
        """Write what `chunks` yields to `path`, which must be new, in bounded memory; durable when it returns.

        An exception from `chunks` leaves no object and is raised again.
        """

    async def retrieve(self, path: str) -> bytes:
        """The whole object. FileNotFound when it is not there."""

    async def retrieve_range(self, path: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. FileNotFound; Corrupt when the object is shorter than that."""

    async def get_metadata(self, path: str) -> ObjectMetadata:
        """Size and time of the object. FileNotFound when it is not there."""

    async def exists(self, path: str) -> bool:
        """Whether the object is there; an unreachable storage raises rather than answers False."""

    async def delete(self, path: str) -> None:
        """Delete the object; one that is not there is a success."""

    async def delete_many(
        self, paths: Sequence[str], *, concurrency: int, patience: timedelta
    ) -> Mapping[str, BinaryStorageError | None]:
        """Delete objects, `concurrency` at once; gives back, by path, None where it is gone, else why it may not be.

        What is gone stays gone after a power cut. A path is left out whose delete was not begun, or not made durable:
        because another one found the storage unavailable, or because `patience` was over.
        """

    @property
    def can_list(self) -> bool:
        """Whether the service can tell what it holds; Redis, for one, cannot."""

    def list_objects(self, folder: str = "", *, recursive: bool = True) -> AsyncIterator[ListedObject]:
        """All objects below `folder`, in no order; without `recursive` those right in it, and its folders.

        What raises in the middle is no listing. What was there from before it began until after it ended is listed by
        services that keep their word; others may leave something out.
        """

    async def move(self, path: str, target: str) -> None:
        """Have the object at `target` instead, where nothing else may be; durable when it returns.

        At every moment one of the two is whole. Two may do it at once, and again after a crash. FileNotFound when it is
        at neither.
        """

    async def read_marker(self) -> StorageMarker | None:
        """The marker, or None when the storage answers and has none."""

    async def write_marker(self, marker: StorageMarker) -> StorageMarker:
        """Write the marker unless there is one, durably; gives back the one that is there now."""

    async def close(self) -> None:
        """Let go of what is held open."""
