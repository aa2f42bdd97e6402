"""Sweeping: objects that were claimed are deleted from their storage, then their rows from the catalog."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from bdr.catalog import blob
from bdr.catalog.blob import ClaimedBlob, FailedDelete
from bdr.errors import BinaryStorageError, StorageUnavailable
from bdr.manager.engine import Engine

logger = logging.getLogger(__name__)


@dataclass
class Sweep:
    """What became of claimed objects.

    Attributes:
        deleted: gone, and their rows with them.
        failed: could not be deleted; `quarantined` of them for the last time.
        unreachable: handed back unharmed, because the storage does not answer, or too slowly.
        trouble: why no more should be asked of the storage for now; also where a failed object was the last one.
    """

    deleted: list[ClaimedBlob] = field(default_factory=list)
    failed: list[FailedDelete] = field(default_factory=list)
    unreachable: list[FailedDelete] = field(default_factory=list)
    quarantined: int = 0
    trouble: str | None = None


async def sweep_objects(
    engine: Engine, storage_name: str, claimed: Sequence[ClaimedBlob], *, concurrency: int | None = None
) -> Sweep:
    """Delete objects of one storage that this instance has claimed, then their rows.

    `concurrency` is how many at once; None is as many as the reaper may.

    No transaction is open while the storage is called. The marker is read before and after: were the share unmounted
    between the two, a "not found" in between would prove nothing, so nothing is finished then.
    """
    try:
        await engine.verify(storage_name)
        sweep = await _delete_objects(engine, storage_name, claimed, concurrency or engine.settings.reaper.concurrency)
        await engine.verify(storage_name)
    except BinaryStorageError as error:
        sweep = Sweep(unreachable=[FailedDelete(one, str(error)) for one in claimed], trouble=str(error))
    # fail point: sweep.swept
    await _write_down(engine, sweep)
    # fail point: sweep.finished
    return sweep


async def sweep_or_leave(engine: Engine, storage_name: str, claimed: Sequence[ClaimedBlob]) -> None:
    """Sweep now; what fails is logged and left to the reaper, for the references are gone already."""
    try:
        sweep = await sweep_objects(engine, storage_name, claimed)
    except BinaryStorageError as error:
        logger.warning("Objects in storage %r are left to the reaper: %s", storage_name, error)
    else:
        for failure in [*sweep.failed, *sweep.unreachable]:
            logger.warning("Object %r is left to the reaper: %s", failure.blob.object_path, failure.error)


async def _delete_objects(engine: Engine, name: str, claimed: Sequence[ClaimedBlob], concurrency: int) -> Sweep:
    """Delete objects and note what became of each.

    A storage that does not answer may be away: then its marker cannot be read afterwards, and nothing of this sweep
    counts. If it can, it is that object that cannot be deleted. The others wait for another pass.
    """
    # The other half is for the deletes that are under way then, and for writing down what became of all: a claim that
    # has run out is worth nothing, so a slow storage would otherwise be swept again and again.
    half = engine.settings.reaper.lease / 2
    paths = [one.object_path for one in claimed]
    outcomes = await engine.storage(name).delete_many(paths, concurrency=concurrency, patience=half)
    sweep = Sweep()
    left: list[ClaimedBlob] = []
    for one in claimed:
        error = outcomes.get(one.object_path)
        if error is not None:
            sweep.failed.append(FailedDelete(one, str(error)))
        elif one.object_path in outcomes:
            sweep.deleted.append(one)
        else:
            left.append(one)
    away = next((str(error) for error in outcomes.values() if isinstance(error, StorageUnavailable)), None)
    if left or away is not None:
        slow = f"storage '{name}' did not delete {len(claimed)} objects in {half}, half of a lease"
        sweep.trouble = away or slow
        sweep.unreachable = [FailedDelete(one, sweep.trouble) for one in left]
    return sweep


async def _write_down(engine: Engine, sweep: Sweep) -> None:
    """Finish what is deleted; failures go in a statement of their own, so that neither can undo the other.

    A row that somebody else has claimed meanwhile is left to them, and counted by them.
    """
    reaper = engine.settings.reaper
    database = engine.database
    if sweep.deleted:
        finished = await database.write(lambda connection: blob.finish(connection, sweep.deleted))
        sweep.deleted = [one for one in sweep.deleted if one.blob_id in finished]
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
