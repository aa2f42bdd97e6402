"""Sweeping: objects that were claimed are deleted from their storage, then their rows from the catalog."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bdr.catalog import blob
from bdr.catalog.blob import ClaimedBlob, FailedDelete
from bdr.errors import BinaryStorageError, StorageUnavailable
from bdr.manager.engine import Engine
from bdr.storage.protocol import BinaryDataStorage


@dataclass
class Sweep:
    """What became of claimed objects.

    Attributes:
        deleted: gone, and their rows with them.
        failed: could not be deleted; `quarantined` of them for the last time.
        unreachable: handed back unharmed, because the storage does not answer, or too slowly.
    """

    deleted: list[ClaimedBlob] = field(default_factory=list)
    failed: list[FailedDelete] = field(default_factory=list)
    unreachable: list[FailedDelete] = field(default_factory=list)
    quarantined: int = 0


async def sweep_objects(engine: Engine, storage_name: str, claimed: Sequence[ClaimedBlob]) -> Sweep:
    """Delete objects of one storage that this instance has claimed, then their rows.

    No transaction is open while the storage is called. The marker is read before and after: were the share unmounted
    between the two, a "not found" in between would prove nothing, so nothing is finished then.
    """
    sweep = Sweep()
    try:
        await engine.verify(storage_name)
        await _delete_objects(engine, storage_name, claimed, sweep)
        await engine.verify(storage_name)
    except BinaryStorageError as error:
        sweep = Sweep(unreachable=[FailedDelete(one, str(error)) for one in claimed])
    # fail point: sweep.swept
    await _write_down(engine, sweep)
    # fail point: sweep.finished
    return sweep


async def _delete_objects(engine: Engine, name: str, claimed: Sequence[ClaimedBlob], sweep: Sweep) -> None:
    storage = engine.storage(name)
    # The other half is for the deletes that are under way then, and for writing down what became of all: a claim that
    # has run out is worth nothing, so a slow storage would otherwise be swept again and again.
    half = engine.settings.reaper.lease / 2
    enough = time.monotonic() + half.total_seconds()
    queue = iter(claimed)

    async def worker() -> None:
        for one in queue:
            reason = await _delete_object(storage, one, sweep)
            if reason is None and time.monotonic() > enough:
                reason = f"storage '{name}' did not delete {len(claimed)} objects in {half}, half of a lease"
            if reason is not None:
                sweep.unreachable.extend(FailedDelete(left, reason) for left in queue)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(engine.settings.reaper.concurrency, len(claimed))):
            workers.create_task(worker())


async def _delete_object(storage: BinaryDataStorage, one: ClaimedBlob, sweep: Sweep) -> str | None:
    """Delete an object and note what became of it; gives back why its storage should be left alone now, if it should.

    A storage that does not answer may be away: then its marker cannot be read afterwards, and nothing of this sweep
    counts. If it can, it is this object that cannot be deleted. Even then the others wait for another pass: they might
    take as long, or press a storage that asks to be spared.
    """
    try:
        await storage.delete(one.object_path)
    except BinaryStorageError as error:
        sweep.failed.append(FailedDelete(one, str(error)))
        return str(error) if isinstance(error, StorageUnavailable) else None
    sweep.deleted.append(one)
    # fail point: sweep.object-deleted
    return None


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
