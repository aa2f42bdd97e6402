"""All OpenDAL; knows no SQL."""

from bdr.storage.opendal import OpenDalStorage
from bdr.storage.opening import open_storage
from bdr.storage.protocol import BinaryDataStorage, ListedObject, ObjectMetadata, StorageMarker, StoredObject

__all__ = [
    "BinaryDataStorage",
    "ListedObject",
    "ObjectMetadata",
    "OpenDalStorage",
    "StorageMarker",
    "StoredObject",
    "open_storage",
]
