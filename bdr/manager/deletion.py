"""Deleting: the reference goes first, the object second, the blob's row last.

Once the first step is committed nobody can reach the blob any more; if this process dies then, or the storage fails,
the row is still there as `deleting` and a reaper does the rest. Every step may be repeated.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import holder, instance, operation, reference
from bdr.catalog.base import AnyRow
from bdr.catalog.blob import ClaimedBlob
from bdr.catalog.count import Counted
from bdr.catalog.database import Database
from bdr.catalog.reference import DeletedReference
from bdr.errors import BinaryStorageError, OutcomeUnknown, Pinned
from bdr.manager.engine import Engine
from bdr.manager.sweep import sweep_or_leave

logger = logging.getLogger(__name__)


class Deletion(Enum):
    """What became of one key of a delete."""

    DELETED = "deleted"
    MISSING = "missing"
    REFERENCED = "referenced"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class Terms:
    """Which references a delete may take, and what it is called in the records."""

    operation_type: str
    whatever_the_count: bool
    force: bool = False

    @property
    def what(self) -> str:
        """What it is called in errors."""
        return self.operation_type.capitalize()


CLEANUP: Final = Terms("cleanup", whatever_the_count=False)


@dataclass
class Removal:
    """What became of references that were to go.

    Attributes:
        verdicts: by key.
        blob_ids: the blobs of those that have gone, by key.
        claimed: the blobs that have no reference left, and are to be swept.
    """

    verdicts: dict[str, Deletion] = field(default_factory=dict)
    blob_ids: dict[str, uuid.UUID] = field(default_factory=dict)
    claimed: list[ClaimedBlob] = field(default_factory=list)


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


async def delete_references(
    engine: Engine, keys: Sequence[str], terms: Terms, *, skip_locked: bool = False
) -> Mapping[str, Deletion]:
    """Delete references, then the objects of blobs that nobody else refers to.

    With `skip_locked` it waits for no reference, and one that somebody else has locked looks as if it were not there.
    """
    removal = await remove_references(engine, keys, terms, skip_locked=skip_locked)
    try:
        for name in {one.storage_name for one in removal.claimed}:
            await sweep_or_leave(engine, name, [one for one in removal.claimed if one.storage_name == name])
    except asyncio.CancelledError as cancelled:
        # A plain cancellation would say that nothing was deleted.
        raise OutcomeUnknown(keys, terms.what) from cancelled
    return removal.verdicts


async def remove_references(
    engine: Engine,
    keys: Sequence[str],
    terms: Terms,
    *,
    skip_locked: bool = False,
    still_asked: Callable[[], Sequence[str]] | None = None,
) -> Removal:
    """The first step of a delete, committed: the references are gone, and their blobs claimed that have none left.

    `still_asked` gives the keys once there is a connection, and when it gives none nothing is sent.
    """
    removal = Removal()

    async def work(own: AsyncConnection) -> None:
        wanted = keys if still_asked is None else still_asked()
        if wanted:
            await _remove(own, engine, wanted, terms, removal, skip_locked=skip_locked)

    await engine.database.transaction(
        work, keys=keys, what=terms.what, ended=lambda: engine.forget(set(removal.blob_ids.values()))
    )
    # fail point: delete.committed
    return removal


async def _remove(
    own: AsyncConnection, engine: Engine, keys: Sequence[str], terms: Terms, removal: Removal, *, skip_locked: bool
) -> None:
    doomed = await _judged(own, keys, terms, removal.verdicts, skip_locked=skip_locked)
    if not doomed:
        return
    removal.blob_ids.update((row.file_key, row.blob_id) for row in doomed)
    orphaned = await reference.remove(own, doomed, engine.settings.reaper.lease)
    # fail point: delete.removed
    removal.claimed.extend(ClaimedBlob(*row) for row in orphaned)
    await _write_down(own, engine, terms, doomed)


async def expire_references(
    own: AsyncConnection, engine: Engine, keys: Sequence[str], terms: Terms
) -> Mapping[str, Deletion]:
    """Delete references in a caller's transaction: no storage is called, and they are left to the reaper."""
    verdicts: dict[str, Deletion] = {}
    doomed = await _judged(own, keys, terms, verdicts)
    if doomed:
        ended = [row.file_key for row in doomed]
        await reference.expire_now(own, ended, whatever_the_count=terms.whatever_the_count)
        if terms.whatever_the_count:
            await holder.forget(own, ended)
        await _write_down(own, engine, terms, doomed)
    return verdicts


async def _judged(
    own: AsyncConnection,
    keys: Sequence[str],
    terms: Terms,
    verdicts: dict[str, Deletion],
    *,
    skip_locked: bool = False,
) -> list[AnyRow]:
    """Lock the references and note what may be done to each; gives back those that are to go."""
    locked = await reference.lock(own, keys, skip_locked=skip_locked)
    # fail point: delete.locked
    for key in keys:
        verdicts[key] = judge(locked.get(key), whatever_the_count=terms.whatever_the_count, force=terms.force)
    return [row for key, row in locked.items() if verdicts[key] is Deletion.DELETED]


async def _write_down(own: AsyncConnection, engine: Engine, terms: Terms, doomed: Sequence[AnyRow]) -> None:
    detail = json.dumps({"forced": True} if terms.force else {})
    await operation.write_deleted(own, terms.operation_type, engine.instance_id, doomed, [detail] * len(doomed))


async def cleanup_released(engine: Engine, released: Mapping[str, Counted]) -> set[str]:
    """Delete what a release has ended at once: no use is left, and no retention; gives back what is not there any more.

    The releases count whatever becomes of this: a reaper does it later.
    """

    def delete(ended: Sequence[str]) -> Awaitable[Mapping[str, Deletion]]:
        return delete_references(engine, ended, CLEANUP)

    return await cleaned_up(released, delete)


async def cleaned_up(
    released: Mapping[str, Counted], delete: Callable[[Sequence[str]], Awaitable[Mapping[str, Deletion]]]
) -> set[str]:
    """As `cleanup_released`; `delete` deletes what has ended."""
    ended = [key for key, one in released.items() if one.has_ended]
    if not ended:
        return set()
    try:
        verdicts = await delete(ended)
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
    by_rule = {rule: json.dumps({"rule": rule}) for rule in {one.rule for one in references}}
    details = [by_rule[one.rule] for one in references]
    await operation.write_deleted(connection, "reap", instance_id, references, details)


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
