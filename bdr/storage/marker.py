"""The text of the object `.bdr-storage`, which says whose storage this is."""

import json

from bdr.errors import StorageMismatch
from bdr.storage.protocol import StorageMarker


def encoded_marker(marker: StorageMarker) -> bytes:
    """The marker as JSON."""
    return json.dumps({"catalog_id": marker.catalog_id, "storage_name": marker.storage_name}, indent=1).encode() + b"\n"


def decoded_marker(data: bytes, where: object) -> StorageMarker:
    """The marker from its JSON; StorageMismatch when it is no marker."""
    try:
        found = json.loads(data)
        catalog_id, storage_name = found["catalog_id"], found["storage_name"]
    except (ValueError, KeyError, TypeError):
        catalog_id = storage_name = None
    if not isinstance(catalog_id, str) or not isinstance(storage_name, str):
        raise StorageMismatch(
            f"the marker .bdr-storage of {where} is not one that bdr wrote ({len(data)} bytes): this may be another "
            "program's data. If it is bdr's, restore the marker from another copy of the storage"
        )
    return StorageMarker(catalog_id, storage_name)
