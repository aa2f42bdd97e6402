"""What the tests of the reaper share: references that have expired, objects that cannot be deleted, records."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from bdr import BinaryDataLifecycleManager, LifecycleCleanupConfig, ReaperConfig
from bdr.storage import OpenDalStorage
from tests.lifecycle.support import change, rows
from tests.storage.helpers import root_of

HOUR = timedelta(hours=1)
NEVER_BY_ITSELF = LifecycleCleanupConfig(zero_ref_retention=HOUR, max_retention=None)
# What failed or was abandoned is due again by the next pass.
EAGER = ReaperConfig(write_grace=timedelta(0), backoff_initial=timedelta(milliseconds=1), backoff_max=HOUR)

_AGE = """
    UPDATE bdr.binary_data_reference
    SET last_access_at = last_access_at - interval '2 hours', created_at = created_at - interval '2 hours'
    WHERE file_key = ANY(:keys)
"""


async def age(binary: BinaryDataLifecycleManager, *keys: str) -> None:
    """Let two hours pass for references."""
    await change(binary, _AGE, keys=list(keys))


async def store_many(binary: BinaryDataLifecycleManager, number: int) -> list[str]:
    """Store so many small files at once; gives back their keys, each held once."""
    stored = await asyncio.gather(*(binary.store_data(f"file {n}".encode()) for n in range(number)))
    return [reference.file_key for reference in stored]


async def expired(binary: BinaryDataLifecycleManager, number: int = 1) -> list[str]:
    """Store so many files, release them and let their time pass; gives back their keys."""
    keys = await store_many(binary, number)
    await asyncio.gather(*(binary.release_reference(key) for key in keys))
    await age(binary, *keys)
    return keys


async def keys_left(binary: BinaryDataLifecycleManager) -> set[str]:
    """The keys of all references."""
    return {key for (key,) in await rows(binary, "SELECT file_key FROM bdr.binary_data_reference")}


async def path_of(binary: BinaryDataLifecycleManager, key: str) -> str:
    """Where the object of a reference lies in its storage."""
    query = "SELECT object_path FROM bdr.blob JOIN bdr.binary_data_reference USING (blob_id) WHERE file_key = :key"
    return str((await rows(binary, query, key=key))[0][0])


def folder_of(binary: BinaryDataLifecycleManager, name: str = "main") -> Path:
    """The folder of a storage of type fs."""
    storage = binary.engine.storage(name)
    assert isinstance(storage, OpenDalStorage)
    return root_of(storage)


def make_undeletable(path: Path) -> None:
    """Put in place of an object a folder that is not empty: no user may delete it, not even root."""
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()


def make_deletable(path: Path) -> None:
    """Put an object there again."""
    (path / "in the way").unlink()
    path.rmdir()
    path.touch()


async def blobs(binary: BinaryDataLifecycleManager) -> list[tuple[Any, ...]]:
    """State, attempts, error and whether there is a next attempt, of all blobs, the oldest first."""
    return await rows(
        binary, "SELECT state, attempts, last_error, next_attempt_at IS NOT NULL FROM bdr.blob ORDER BY blob_id"
    )


async def records(binary: BinaryDataLifecycleManager, operation_type: str) -> Sequence[tuple[Any, ...]]:
    """Key, status, error and detail of all operations of a type, the oldest first."""
    query = "SELECT file_key, status, error, detail FROM bdr.operation WHERE operation_type = :kind ORDER BY started_at"
    return await rows(binary, query, kind=operation_type)
