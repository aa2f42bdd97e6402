"""One pass of the reaper: idempotent, safe beside any number of others, and apart from what schedules it."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, instance, operation, reference
from bdr.catalog.operation import Record
from bdr.catalog.reference import DeletedReference
from bdr.errors import BinaryStorageError, ConfigError, StorageMismatch, StorageUnavailable
from bdr.keys import new_id
from bdr.manager.deletion import sweep_objects
from bdr.manager.engine import Engine
from bdr.progress import OperationStatus

logger = logging.getLogger(__name__)

# References and blobs are reaped in batches of the configured size; records in larger ones, they are plain rows.
_PRUNE_BATCH = 5000


class ReapReport(BaseModel):
    """What one pass did.

    Attributes:
        references: expired references that were deleted.
        blobs: objects that were deleted with their rows.
        bytes: their size.
        stranded: uploads past their deadline that were given over to deletion.
        failed: objects that could not be deleted and will be tried again.
        quarantined: objects that failed too often; a person decides.
        unreachable: storages that were left out, and why.
        instances: engine instances that were declared dead.
        pruned: operation records that were moved into the totals.
        duration: seconds.
    """

    references: int = 0
    blobs: int = 0
    bytes: int = 0
    stranded: int = 0
    failed: int = 0
    quarantined: int = 0
    unreachable: dict[str, str] = {}
    instances: int = 0
    pruned: int = 0
    duration: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to do."""
        counts = (self.references, self.blobs, self.stranded, self.failed, self.quarantined, self.instances)
        return not any(counts) and not self.unreachable and not self.pruned


async def reap(engine: Engine, *, stopping: Callable[[], bool] = lambda: False) -> ReapReport:
    """Run one pass over all storages that this instance can reach; `stopping` is asked between batches.

    What another reaper has claimed is skipped, not waited for. A storage that cannot be reached ends its own part of
    the pass; the catalog's errors end the pass, and what was claimed by then is claimed again after its lease.
    """
    engine.require_open()
    report = ReapReport()
    began = time.monotonic()
    await _bury(engine, report)
    async with asyncio.TaskGroup() as parts:
        for name in engine.storages:
            parts.create_task(_reap_storage(engine, name, report, stopping))
    await _prune(engine, report, stopping)
    report.duration = time.monotonic() - began
    await _report(engine, report)
    return report


async def _bury(engine: Engine, report: ReapReport) -> None:
    """Declare silent instances dead, fail what they were doing, and forget what was in their memory."""
    silence = engine.settings.instance.timeout
    dead = await engine.database.write(lambda own: instance.declare_dead(own, silence))
    report.instances = len(dead)
    if dead:
        await engine.database.write(lambda own: operation.fail_lost(own, dead))
    async with engine.database.reading() as connection:
        forgotten = await instance.memory_of_the_stopped(connection)
    for name in forgotten:
        report.references += await engine.database.transaction(partial(instance.forget_memory, storage_name=name))


async def _reap_storage(engine: Engine, name: str, report: ReapReport, stopping: Callable[[], bool]) -> None:
    try:
        await engine.verify(name)
    except (StorageUnavailable, StorageMismatch, ConfigError) as error:
        report.unreachable[name] = str(error)
        return
    except BinaryStorageError as error:
        report.unreachable[name] = f"its marker could not be read: {error}"
        return
    await _expire(engine, name, report, stopping)
    await _strand(engine, name, report)
    await _delete(engine, name, report, stopping)


async def _expire(engine: Engine, name: str, report: ReapReport, stopping: Callable[[], bool]) -> None:
    batch = engine.settings.reaper.batch_size
    while not stopping():
        expired = await _expire_batch(engine, name, batch)
        report.references += expired
        if expired < batch:
            return


async def _expire_batch(engine: Engine, name: str, batch: int) -> int:
    async def work(own: AsyncConnection) -> int:
        expired = await reference.claim_expired(own, name, batch)
        await operation.write_ended(own, [_record(engine, one) for one in expired])
        return len(expired)

    return await engine.database.transaction(work)


def _record(engine: Engine, one: DeletedReference) -> Record:
    return Record(
        operation_id=new_id(),
        operation_type="reap",
        instance_id=engine.instance_id,
        status=OperationStatus.SUCCEEDED,
        file_key=one.file_key,
        namespace=one.namespace,
        total_bytes=one.file_size,
        processed_bytes=one.file_size,
        detail={"rule": one.rule},
    )


async def _strand(engine: Engine, name: str, report: ReapReport) -> None:
    settings = engine.settings.reaper
    report.stranded += await engine.database.write(
        lambda own: blob.claim_stranded(own, name, settings.write_grace, settings.batch_size)
    )


async def _delete(engine: Engine, name: str, report: ReapReport, stopping: Callable[[], bool]) -> None:
    settings = engine.settings.reaper
    while not stopping():
        # Acknowledged before the first object is touched: from here until the lease ends nobody else deletes these.
        claimed = await engine.database.write(
            lambda own: blob.claim_due(own, name, settings.lease, settings.batch_size)
        )
        if not claimed:
            return
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


async def _prune(engine: Engine, report: ReapReport, stopping: Callable[[], bool]) -> None:
    age = engine.settings.operations.retention
    while age is not None and not stopping():
        pruned = await engine.database.write(lambda own: operation.prune_old(own, age, _PRUNE_BATCH))
        report.pruned += pruned
        if pruned < _PRUNE_BATCH:
            return


async def _report(engine: Engine, report: ReapReport) -> None:
    if report.is_empty:
        return
    for name, reason in report.unreachable.items():
        logger.warning("Storage %r was left out of the reap: %s", name, reason)
    logger.info("Reaped: %s", report.model_dump(exclude={"unreachable"}))
    record = Record(
        operation_id=new_id(),
        operation_type="reap_pass",
        instance_id=engine.instance_id,
        status=OperationStatus.FAILED if report.failed or report.unreachable else OperationStatus.SUCCEEDED,
        elapsed=timedelta(seconds=report.duration),
        processed_bytes=report.bytes,
        detail=report.model_dump(),
    )
    await engine.database.write(lambda own: operation.write_ended(own, [record]))
