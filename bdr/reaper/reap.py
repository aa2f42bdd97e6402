"""One pass of the reaper: idempotent, safe beside any number of others, and apart from what schedules it."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, holder, instance, operation, reference
from bdr.catalog.operation import Record
from bdr.errors import BinaryStorageError
from bdr.keys import new_id
from bdr.manager.deletion import forget_memory, write_reaped
from bdr.manager.engine import Engine
from bdr.manager.sweep import sweep_objects
from bdr.progress import OperationStatus
from bdr.reaper import breaker

logger = logging.getLogger(__name__)

# References and blobs are reaped in batches of the configured size; records in larger ones, they are plain rows.
_PRUNE_BATCH = 5000

Stopping = Callable[[], bool]


class ReapReport(BaseModel):
    """What one pass did.

    Attributes:
        references: expired references that were deleted, and those into the memory of an engine that is no more.
        blobs: objects that were deleted with their rows.
        bytes: their size.
        stranded: uploads past their deadline that were given over to deletion.
        failed: objects that could not be deleted and will be tried again.
        quarantined: objects that failed too often; a person decides.
        stopped: why nothing was deleted, and a person should look first.
        unreachable: storages that were left out, wholly or from some point on, and why.
        instances: engine instances that were declared dead.
        holders: named registrations that ended with their lease, or with their engine instance.
        pruned: operation records that were moved into the totals.
        duration: seconds.
    """

    references: int = 0
    blobs: int = 0
    bytes: int = 0
    stranded: int = 0
    failed: int = 0
    quarantined: int = 0
    stopped: str | None = None
    unreachable: dict[str, str] = {}
    instances: int = 0
    holders: int = 0
    pruned: int = 0
    duration: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to do."""
        return not any(self.model_dump(exclude={"duration"}).values())

    @property
    def trouble(self) -> str | None:
        """What did not work; None when all did."""
        parts = [f"nothing was deleted: {self.stopped}"] if self.stopped else []
        parts += [f"objects that could not be deleted and will be tried again: {self.failed}"] if self.failed else []
        parts += [f"objects that are quarantined now: {self.quarantined}"] if self.quarantined else []
        parts += [f"storage '{name}' was left out: {reason}" for name, reason in self.unreachable.items()]
        return "; ".join(parts) or None


async def reap(engine: Engine, *, stopping: Stopping = lambda: False, confirmed: bool = False) -> ReapReport:
    """Run one pass over all storages that this instance can reach; `stopping` is asked between batches.

    Unless it is `confirmed`, a pass that finds too much to delete, or the database's clock gone wrong, deletes nothing.
    What another reaper has claimed is skipped, not waited for. A storage that cannot be reached ends its own part of
    the pass. An error of the catalog is raised when all parts have ended; what was claimed by then is claimed again
    after its lease.
    """
    engine.require_open()
    report = ReapReport()
    began = time.monotonic()
    error: BinaryStorageError | None = None
    try:
        await _run(engine, report, stopping, confirmed=confirmed)
    except BinaryStorageError as failure:
        error = failure
    report.duration = time.monotonic() - began
    if error is None:
        await _conclude(engine, report, report.trouble)
        return report
    # The catalog may be there again, or may only have been busy: then the record says what came of the pass.
    with suppress(BinaryStorageError):
        await _conclude(engine, report, f"it ended early: {error}")
    raise error


async def _run(engine: Engine, report: ReapReport, stopping: Stopping, *, confirmed: bool) -> None:
    if confirmed:
        await breaker.confirm(engine)
    else:
        report.stopped = await breaker.reason_to_stop(engine)
    if report.stopped is None:
        await _bury(engine, report, stopping)
        await _lapse(engine, report, stopping)
        await _reap_storages(engine, report, stopping)
        await _prune(engine, report, stopping)


async def _bury(engine: Engine, report: ReapReport, stopping: Stopping) -> None:
    """Declare silent instances dead, fail what they were doing, and forget what was in their memory."""
    silence = engine.settings.instance.timeout
    report.instances = await engine.database.write(lambda own: instance.declare_dead(own, silence))
    # fail point: reap.buried
    await engine.database.write(instance.fail_lost)
    async with engine.database.reading() as connection:
        forgotten = await instance.memory_of_the_stopped(connection)
    for name in forgotten:
        if not stopping():
            report.references += await forget_memory(
                engine.database, name, batch=engine.settings.reaper.batch_size, instance_id=engine.instance_id
            )


async def _lapse(engine: Engine, report: ReapReport, stopping: Stopping) -> None:
    """Release the holders whose lease is over, or whose instance has stopped."""
    batch = engine.settings.reaper.batch_size
    while not stopping():
        released = await engine.database.transaction(lambda own: holder.lapse(own, batch))
        # fail point: reap.lapsed
        report.holders += released
        if released < batch:
            return


async def _reap_storages(engine: Engine, report: ReapReport, stopping: Stopping) -> None:
    """Each storage by itself and all at once: what goes wrong in one part lets the others end."""
    names = list(engine.storages)
    ended = await asyncio.gather(
        *(_reap_storage(engine, name, report, stopping) for name in names), return_exceptions=True
    )
    for name, error in zip(names, ended, strict=True):
        if isinstance(error, Exception) and not isinstance(error, BinaryStorageError):
            logger.error("The reap of storage %r failed unexpectedly", name, exc_info=error)
            report.unreachable[name] = f"{type(error).__name__}: {error}"
    for error in ended:
        if isinstance(error, BinaryStorageError | asyncio.CancelledError):
            raise error


async def _reap_storage(engine: Engine, name: str, report: ReapReport, stopping: Stopping) -> None:
    try:
        await engine.verify(name)
    except BinaryStorageError as error:
        report.unreachable[name] = str(error)
        return
    await _expire(engine, name, report, stopping)
    await _strand(engine, name, report, stopping)
    await _delete(engine, name, report, stopping)


async def _expire(engine: Engine, name: str, report: ReapReport, stopping: Stopping) -> None:
    batch = engine.settings.reaper.batch_size

    async def work(own: AsyncConnection) -> int:
        expired = await reference.claim_expired(own, name, batch)
        # fail point: reap.expired
        await write_reaped(own, engine.instance_id, expired)
        return len(expired)

    while not stopping():
        expired = await engine.database.transaction(work)
        # fail point: reap.expired-committed
        report.references += expired
        if expired < batch:
            return


async def _strand(engine: Engine, name: str, report: ReapReport, stopping: Stopping) -> None:
    settings = engine.settings.reaper
    while not stopping():
        stranded = await engine.database.write(
            lambda own: blob.claim_stranded(own, name, settings.write_grace, settings.batch_size)
        )
        report.stranded += stranded
        if stranded < settings.batch_size:
            return


async def _delete(engine: Engine, name: str, report: ReapReport, stopping: Stopping) -> None:
    settings = engine.settings.reaper
    while not stopping():
        # Acknowledged before the first object is touched: from here until the lease ends nobody else deletes these.
        claimed = await engine.database.write(
            lambda own: blob.claim_due(own, name, settings.lease, settings.batch_size)
        )
        if not claimed:
            return
        # fail point: reap.claimed
        sweep = await sweep_objects(engine, name, claimed)
        report.blobs += len(sweep.deleted)
        report.bytes += sum(one.size or 0 for one in sweep.deleted)
        report.quarantined += sweep.quarantined
        report.failed += len(sweep.failed) - sweep.quarantined
        if sweep.unreachable:
            report.unreachable[name] = sweep.unreachable[0].error
            return
        if len(claimed) < settings.batch_size:
            return


async def _prune(engine: Engine, report: ReapReport, stopping: Stopping) -> None:
    age = engine.settings.operations.retention
    while age is not None and not stopping():
        pruned = await engine.database.write(lambda own: operation.prune_old(own, age, _PRUNE_BATCH))
        # fail point: reap.pruned
        report.pruned += pruned
        if pruned < _PRUNE_BATCH:
            return


async def _conclude(engine: Engine, report: ReapReport, trouble: str | None) -> None:
    """Log the pass and write it down, unless there was nothing to do."""
    if trouble is not None:
        logger.warning("A reap had trouble: %s", trouble)
    elif report.is_empty:
        return
    logger.info("Reaped: %s", report.model_dump(exclude={"unreachable"}))
    record = Record(
        operation_id=new_id(),
        operation_type="reap_pass",
        instance_id=engine.instance_id,
        status=OperationStatus.SUCCEEDED if trouble is None else OperationStatus.FAILED,
        elapsed=timedelta(seconds=report.duration),
        processed_bytes=report.bytes,
        error=trouble,
        detail=report.model_dump(),
    )
    await engine.database.write(lambda own: operation.write_ended(own, [record]))
