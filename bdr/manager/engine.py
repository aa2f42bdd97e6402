"""What every part of a running engine instance shares: the catalog, the storages, the settings, its identity."""

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from bdr.catalog.database import Database
from bdr.catalog.reference import Location
from bdr.errors import ConfigError, InstanceClosed, StorageMismatch, StorageUnavailable
from bdr.manager.locations import Locations
from bdr.settings import Settings
from bdr.storage.protocol import BinaryDataStorage, StorageMarker


@dataclass
class Engine:
    """One engine instance.

    Attributes:
        storages: by their name in the catalog, which for a memory storage carries the instance.
        default_storage: the name under which new files are stored.
        locations: where files lie, as far as it is remembered.
        tell: has other engines told which blobs have lost a reference.
        at_close: called when it is closed, or declared dead.
    """

    settings: Settings
    database: Database
    catalog_id: uuid.UUID
    instance_id: uuid.UUID
    storages: Mapping[str, BinaryDataStorage]
    default_storage: str
    locations: Locations = field(default_factory=lambda: Locations(0))
    tell: Callable[[Collection[uuid.UUID]], None] = lambda _blob_ids: None
    at_close: Callable[[], None] = lambda: None
    _closed: str | None = None
    _verified: set[str] = field(default_factory=set)

    def close(self, reason: str) -> None:
        """From now on every call is refused with `reason`; the first reason stays."""
        self._closed = self._closed or reason
        self.at_close()

    def require_open(self) -> None:
        """Raise InstanceClosed once this instance was closed or declared dead."""
        if self._closed is not None:
            raise InstanceClosed(self._closed)

    def remembered(self, key: str) -> Location | None:
        """Where the bytes of a key lie, if that is known without asking; InstanceClosed as `require_open`."""
        self.require_open()
        return self.locations.get(key)

    def forget(self, blob_ids: Collection[uuid.UUID]) -> None:
        """These blobs have lost references, or may have: no engine shall go by what it remembers of them.

        To be called once that is committed: who was told before might remember it anew.
        """
        if blob_ids:
            self.locations.drop(blob_ids)
            self.tell(blob_ids)

    def storage(self, name: str) -> BinaryDataStorage:
        """The storage of that name; ConfigError or StorageUnavailable when this instance cannot reach it."""
        if name in self.storages:
            return self.storages[name]
        if "@" in name:
            raise StorageUnavailable(
                f"The bytes lie in the memory of another engine instance (storage '{name}'): only that one can read "
                "them. Share a storage that is not of type memory."
            )
        raise ConfigError(
            f"The bytes lie in storage '{name}', which is not configured here (configured: "
            f"{', '.join(sorted(self.storages))}). Add it under [storages.{name}]."
        )

    async def verify(self, name: str) -> None:
        """Read the storage's marker now; nothing may be deleted from a storage whose marker is not the right one.

        A share that is not mounted answers every delete with success, so an object would outlive its row.
        """
        self._verified.discard(name)
        marker = await self.storage(name).read_marker()
        if marker is None:
            raise StorageUnavailable(
                f"Storage '{name}' has no marker object: {self.storage(name).location} is not mounted, or was emptied."
            )
        if marker != StorageMarker(str(self.catalog_id), name):
            raise StorageMismatch(
                f"Storage '{name}' ({self.storage(name).location}) is marked as storage '{marker.storage_name}' of "
                f"catalog {marker.catalog_id}; this catalog is {self.catalog_id}. Nothing is deleted there."
            )
        self._verified.add(name)

    async def require_verified(self, name: str) -> None:
        """Read the marker unless it was right when it was last read; nothing is written to an unknown place."""
        if name not in self._verified:
            await self.verify(name)
