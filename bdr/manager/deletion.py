"""Deleting: the reference goes first, the object second, the blob's row last.

Once the first step is committed nobody can reach the blob any more; if this process dies then, or the storage fails,
the row is still there as `deleting` and a reaper does the rest. Every step may be repeated.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import holder, instance, operation, reference
from bdr.catalog.base import AnyRow
from bdr.catalog.blob import ClaimedBlob
from bdr.catalog.count import Counted
from bdr.catalog.database import Database
from bdr.catalog.operation import Record
from bdr.catalog.reference import DeletedReference
from bdr.errors import BinaryStorageError, OutcomeUnknown, Pinned
from bdr.keys import new_id
from bdr.manager.engine import Engine
from bdr.manager.sweep import sweep_or_leave
from bdr.manager.sweeping import Sweeping
from bdr.progress import OperationStatus

logger = logging.getLogger(__name__)


class Deletion(Enum):
    """What became of one key of a delete."""

    DELETED = "deleted"
    MISSING = "missing"
    REFERENCED = "referenced"
    PINNED = "pinned"


def judge(row: AnyRow | None, *, whatever_the_count: bool, force: bool) -> Deletion:
    """What may be done to a reference that is locked; None stands for one that is not there."""
    if row is None:
        return Deletion.MISSING
    if row.pinned and not force:
        return Deletion.PINNED
    if row.ref_count > 0 and not whatever_the_count:
        return Deletion.REFERENCED
    return Deletion.DELETED


def pinned(key: str) -> Pinned:
    """The error for a delete of what is pinned."""
    return Pinned(f"The reference {key!r} is pinned; deleting it needs force=True.")


def _record(
    instance_id: uuid.UUID, operation_type: str, row: AnyRow | DeletedReference, detail: dict[str, Any]
) -> Record:
    return Record(
        operation_id=new_id(),
        operation_type=operation_type,
        instance_id=instance_id,
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
    skip_locked: bool = False,
    connection: AsyncConnection | None = None,
    sweeping: Sweeping | None = None,
) -> Mapping[str, Deletion]:
    """Delete references, then the objects of blobs that nobody else refers to; by themselves, or with others' objects.

    With a caller's `connection` no storage is called and no blob changes: the references are left to the reaper. With
    `skip_locked` it waits for no reference, and one that somebody else has locked looks as if it were not there.
    """
    claimed: list[ClaimedBlob] = []
    verdicts: dict[str, Deletion] = {}
    blob_ids: set[uuid.UUID] = set()

    async def work(own: AsyncConnection) -> None:
        locked = await reference.lock(own, keys, skip_locked=skip_locked)
        # fail point: delete.locked
        for key in keys:
            verdicts[key] = judge(locked.get(key), whatever_the_count=whatever_the_count, force=force)
        doomed = [row for key, row in locked.items() if verdicts[key] is Deletion.DELETED]
        if not doomed:
            return
        if connection is not None:
            ended = [row.file_key for row in doomed]
            await reference.expire_now(own, ended, whatever_the_count=whatever_the_count)
            if whatever_the_count:
                await holder.forget(own, ended)
        else:
            blob_ids.update(row.blob_id for row in doomed)
            orphaned = await reference.remove(own, doomed, engine.settings.reaper.lease)
            # fail point: delete.removed
            claimed.extend(ClaimedBlob(*row) for row in orphaned)
        detail = {"forced": force} if force else {}
        await operation.write_ended(own, [_record(engine.instance_id, operation_type, row, detail) for row in doomed])

    if connection is not None:
        await work(connection)
        return verdicts
    what = operation_type.capitalize()
    await engine.database.transaction(work, keys=keys, what=what, ended=lambda: engine.forget(blob_ids))
    # fail point: delete.committed
    try:
        await _sweep(engine, sweeping, claimed)
    except asyncio.CancelledError as cancelled:
        # A plain cancellation would say that nothing was deleted.
        raise OutcomeUnknown(keys, what) from cancelled
    return verdicts


async def cleanup_released(
    engine: Engine, released: Mapping[str, Counted], sweeping: Sweeping | None = None
) -> set[str]:
    """Delete what a release has ended at once: no use is left, and no retention; gives back what is not there any more.

    The releases count whatever becomes of this: a reaper does it later.
    """
    ended = [key for key, one in released.items() if one.after == 0 and one.zero_ref_retention == timedelta(0)]
    if not ended:
        return set()
    try:
        verdicts = await delete_references(
            engine, ended, operation_type="cleanup", whatever_the_count=False, sweeping=sweeping
        )
    except BinaryStorageError as error:
        if isinstance(error, OutcomeUnknown) and error.cancelled:
            raise OutcomeUnknown(ended, "Releasing") from error.__cause__
        logger.warning("%s and what else was released with it is left to the reaper: %s", ended[0], error)
        return set()
    except asyncio.CancelledError as cancelled:
        # A plain cancellation would say that nothing was counted.
        raise OutcomeUnknown(ended, "Releasing") from cancelled
    return {key for key, verdict in verdicts.items() if verdict in (Deletion.DELETED, Deletion.MISSING)}


async def write_reaped(
    connection: AsyncConnection, instance_id: uuid.UUID, references: Sequence[DeletedReference]
) -> None:
    """Write a record for each reference that was reaped, with the rule by which it was."""
    records = [_record(instance_id, "reap", one, {"rule": one.rule}) for one in references]
    await operation.write_ended(connection, records)


async def forget_memory(database: Database, storage_name: str, *, batch: int, instance_id: uuid.UUID) -> int:
    """Delete all that was in the memory of an engine that is no more; gives back how many references there were.

    `instance_id` is who does it, for the records.
    """

    async def work(own: AsyncConnection) -> tuple[int, int]:
        references, blobs = await instance.forget_memory(own, storage_name, batch)
        await write_reaped(own, instance_id, references)
        return len(references), blobs

    forgotten = 0
    progress = (1, 0)
    while any(progress):
        progress = await database.transaction(work)
        forgotten += progress[0]
    return forgotten


async def _sweep(engine: Engine, sweeping: Sweeping | None, claimed: Sequence[ClaimedBlob]) -> None:
    if sweeping is not None:
        await asyncio.gather(*map(sweeping.sweep, claimed))
        return
    for name in {one.storage_name for one in claimed}:
        await sweep_or_leave(engine, name, [one for one in claimed if one.storage_name == name])
