"""Deleting: the reference goes first, the object second, the blob's row last.

Once the first step is committed nobody can reach the blob any more; if this process dies then, or the storage fails,
the row is still there as `deleting` and a reaper does the rest. Every step may be repeated.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, operation, reference
from bdr.catalog.base import AnyRow
from bdr.catalog.blob import ClaimedBlob, FailedDelete
from bdr.catalog.operation import Record
from bdr.errors import BinaryStorageError, ConfigError, StorageMismatch, StorageUnavailable
from bdr.keys import new_id
from bdr.manager.engine import Engine
from bdr.progress import OperationStatus
from bdr.storage.protocol import BinaryDataStorage

logger = logging.getLogger(__name__)


class Deletion(Enum):
    """What became of one key of a delete."""

    DELETED = "deleted"
    MISSING = "missing"
    REFERENCED = "referenced"
    PINNED = "pinned"


@dataclass
class Sweep:
    """What became of claimed objects."""

    deleted: list[ClaimedBlob] = field(default_factory=list)
    failed: list[FailedDelete] = field(default_factory=list)
    unreachable: list[FailedDelete] = field(default_factory=list)
    quarantined: int = 0


def judge(row: AnyRow | None, *, whatever_the_count: bool, force: bool) -> Deletion:
    """What may be done to a reference that is locked; None stands for one that is not there."""
    if row is None:
        return Deletion.MISSING
    if row.pinned and not force:
        return Deletion.PINNED
    if row.ref_count > 0 and not whatever_the_count:
        return Deletion.REFERENCED
    return Deletion.DELETED


def _record(engine: Engine, operation_type: str, row: AnyRow, detail: dict[str, Any]) -> Record:
    return Record(
        operation_id=new_id(),
        operation_type=operation_type,
        instance_id=engine.instance_id,
        status=OperationStatus.SUCCEEDED,
        file_key=row.file_key,
        namespace=row.namespace,
        total_bytes=row.file_size,
        processed_bytes=row.file_size,
        detail=detail,
    )


async def delete_references(
    engine: Engine,
    keys: Sequence[str],
    *,
    operation_type: str,
    whatever_the_count: bool,
    force: bool = False,
    connection: AsyncConnection | None = None,
) -> Mapping[str, Deletion]:
    """Delete references, then the objects of blobs that nobody else refers to.

    With a caller's `connection` no storage is called and no blob changes: the references are left to the reaper.
    """
    claimed: list[ClaimedBlob] = []
    verdicts: dict[str, Deletion] = {}

    async def work(own: AsyncConnection) -> None:
        locked = await reference.lock(own, keys)
        for key in keys:
            verdicts[key] = judge(locked.get(key), whatever_the_count=whatever_the_count, force=force)
        doomed = [row for key, row in locked.items() if verdicts[key] is Deletion.DELETED]
        if not doomed:
            return
        if connection is not None:
            await reference.expire_now(own, [row.file_key for row in doomed], whatever_the_count=whatever_the_count)
        else:
            orphaned = await reference.remove(own, doomed, engine.settings.reaper.lease)
            claimed.extend(ClaimedBlob(*row) for row in orphaned)
        detail = {"forced": force} if force else {}
        await operation.write_ended(own, [_record(engine, operation_type, row, detail) for row in doomed])

    if connection is not None:
        await work(connection)
    else:
        await engine.database.transaction(work, keys=keys, what=operation_type.capitalize())
        await _sweep_at_once(engine, claimed)
    return verdicts


async def _sweep_at_once(engine: Engine, claimed: Sequence[ClaimedBlob]) -> None:
    """Delete the objects now; what fails is logged and left to the reaper, for the references are gone already."""
    for name in {one.storage_name for one in claimed}:
        try:
            sweep = await sweep_objects(engine, name, [one for one in claimed if one.storage_name == name])
        except BinaryStorageError as error:
            logger.warning("Objects in storage %r are left to the reaper: %s", name, error)
        else:
            for failure in [*sweep.failed, *sweep.unreachable]:
                logger.warning("Object %r is left to the reaper: %s", failure.blob.object_path, failure.error)


async def sweep_objects(engine: Engine, storage_name: str, claimed: Sequence[ClaimedBlob]) -> Sweep:
    """Delete objects of one storage that this instance has claimed, then their rows.

    No transaction is open while the storage is called. The marker is read before and after: were the share unmounted
    between the two, a "not found" in between would prove nothing, so nothing is finished then.
    """
    sweep = Sweep()
    try:
        await engine.verify(storage_name)
        await _delete_objects(engine.storage(storage_name), claimed, engine.settings.reaper.concurrency, sweep)
        await engine.verify(storage_name)
    except (StorageUnavailable, StorageMismatch, ConfigError) as error:
        sweep = Sweep(unreachable=[FailedDelete(one, str(error)) for one in claimed])
    await _write_down(engine, sweep)
    return sweep


async def _delete_objects(
    storage: BinaryDataStorage, claimed: Sequence[ClaimedBlob], concurrency: int, sweep: Sweep
) -> None:
    queue = iter(claimed)

    async def worker() -> None:
        for one in queue:
            try:
                await storage.delete(one.object_path)
            except StorageUnavailable as error:
                # The others would only wait for the same time-out: they are handed back unasked.
                sweep.unreachable.extend(FailedDelete(left, str(error)) for left in (one, *queue))
            except BinaryStorageError as error:
                sweep.failed.append(FailedDelete(one, str(error)))
            else:
                sweep.deleted.append(one)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(concurrency, len(claimed))):
            workers.create_task(worker())


async def _write_down(engine: Engine, sweep: Sweep) -> None:
    """Finish what is deleted; failures go in a statement of their own, so that neither can undo the other."""
    reaper = engine.settings.reaper
    database = engine.database
    if sweep.deleted:
        ids = [one.blob_id for one in sweep.deleted]
        await database.write(lambda connection: blob.finish(connection, ids))
    if sweep.failed:
        sweep.quarantined = await database.write(
            lambda connection: blob.postpone(
                connection,
                sweep.failed,
                backoff=reaper.backoff_initial,
                backoff_max=reaper.backoff_max,
                max_attempts=reaper.max_attempts,
            )
        )
    if sweep.unreachable:
        await database.write(lambda connection: blob.hand_back(connection, sweep.unreachable, reaper.backoff_initial))
