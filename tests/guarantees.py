"""Compares a catalog with its storages: what the guarantees promise must hold whenever nothing is under way."""

import hashlib
from collections.abc import Mapping

from sqlalchemy import text

from bdr.catalog.base import AnyRow
from bdr.catalog.database import Database
from bdr.errors import BinaryStorageError
from bdr.storage import BinaryDataStorage, OpenDalStorage
from bdr.storage.paths import MARKER_PATH

_REFERENCES = """
    SELECT r.file_key, r.ref_count, b.state, b.storage_name, b.object_path, b.size, b.checksum
    FROM bdr.binary_data_reference r LEFT JOIN bdr.blob b ON b.blob_id = r.blob_id
"""
_BLOBS = """
    SELECT b.storage_name, b.object_path, b.state,
           EXISTS (SELECT FROM bdr.binary_data_reference r WHERE r.blob_id = b.blob_id) AS referenced
    FROM bdr.blob b
"""


async def objects_in(storage: BinaryDataStorage) -> set[str]:
    """The paths of all objects under the storage's root, the marker left out."""
    assert isinstance(storage, OpenDalStorage)
    operator = storage._operator
    if operator.capability().list:
        entries = [entry.path async for entry in await operator.list("", recursive=True)]
    else:
        entries = await _redis_keys(storage)
    return {path for path in entries if not path.endswith("/") and path not in ("", MARKER_PATH)}


async def _redis_keys(storage: OpenDalStorage) -> list[str]:
    from valkey.asyncio import Valkey

    options = storage._service.options
    root = storage._service.options.get("root", "").strip("/")
    async with Valkey.from_url(options["endpoint"], db=int(options.get("db", 0))) as client:
        prefix = f"{root}/" if root else ""
        found = [key async for key in client.scan_iter(match=f"{prefix}*")]
    return [key.decode().removeprefix(prefix) for key in found]


async def violations(database: Database, storages: Mapping[str, BinaryDataStorage]) -> list[str]:
    """What is wrong, a sentence each; empty when G1 and G2 hold and no count is below zero."""
    async with database.reading() as connection:
        references = (await connection.execute(text(_REFERENCES))).all()
        blobs = (await connection.execute(text(_BLOBS))).all()
    wrong = [f"{row.file_key}: count {row.ref_count}" for row in references if row.ref_count < 0]
    for row in references:
        wrong += await _reference_violations(row, storages)
    owned = {(row.storage_name, row.object_path) for row in blobs}
    wrong += [
        f"blob {row.object_path} is live without a reference"
        for row in blobs
        if row.state == "live" and not row.referenced
    ]
    for name, storage in storages.items():
        wrong += [
            f"object {path} in {name} has no row" for path in await objects_in(storage) if (name, path) not in owned
        ]
    return wrong


async def _reference_violations(row: AnyRow, storages: Mapping[str, BinaryDataStorage]) -> list[str]:
    key = row.file_key
    if row.state != "live":
        return [f"{key} refers to a blob that is {row.state}"]
    try:
        data = await storages[row.storage_name].retrieve(row.object_path)
    except BinaryStorageError as error:
        return [f"{key} cannot be read: {error}"]
    if (len(data), hashlib.sha256(data).digest()) != (row.size, row.checksum):
        return [f"{key} holds other bytes than were recorded"]
    return []
