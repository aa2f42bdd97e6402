"""One pass of the reaper: idempotent, safe beside any number of others, and apart from what schedules it."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, expiry, holder, instance, operation
from bdr.catalog.blob import ClaimedBlob
from bdr.catalog.expiry import Expired
from bdr.errors import BinaryStorageError
from bdr.manager.deletion import forget_memory, write_reaped
from bdr.manager.engine import Engine
from bdr.manager.operations import OnProgress, Operations, RunningOperation
from bdr.manager.sweep import sweep_objects
from bdr.progress import OperationStatus
from bdr.reaper import breaker
from bdr.reaper.report import ReapReport
from bdr.storage.calls import BATCHES

logger = logging.getLogger(__name__)

# References and blobs are reaped in batches of the configured size; records in larger ones, they are plain rows.
_PRUNE_BATCH = 5000
# Batches of each storage at once: the catalog is asked for one, while the objects of others are being deleted. No more
# than have threads there: one that waited for them would use up its lease.
_LANES = BATCHES

Stopping = Callable[[], bool]


async def reap(
    engine: Engine,
    operations: Operations,
    *,
    stopping: Stopping = lambda: False,
    confirmed: bool = False,
    operation_id: uuid.UUID | str | None = None,
    on_progress: OnProgress | None = None,
) -> ReapReport:
    """Run one pass over all storages that this instance can reach; `stopping` is asked between batches.

    Unless it is `confirmed`, a pass that finds too much to delete, or the database's clock gone wrong, deletes nothing.
    What another reaper has claimed is skipped, not waited for. A storage that cannot be reached ends its own part of
    the pass. An error of the catalog is raised when all parts have ended; what was claimed by then is claimed again
    after its lease.
    """
    engine.require_open()
    begun = await operations.begin("reap_pass", operation_id=operation_id, on_progress=on_progress)
    with begun as running:
        return await _Pass(engine, running, stopping, asked_for=operation_id is not None).run(confirmed=confirmed)


class _Pass:
    """One pass under way; one that is `asked_for` by an id is written down even if there was nothing to do."""

    def __init__(self, engine: Engine, running: RunningOperation, stopping: Stopping, *, asked_for: bool) -> None:
        self._engine = engine
        self._running = running
        self._stopping = stopping
        self._asked_for = asked_for
        self._settings = engine.settings.reaper
        self._report = ReapReport()

    async def run(self, *, confirmed: bool) -> ReapReport:
        report = self._report
        began = time.monotonic()
        error: BinaryStorageError | None = None
        try:
            await self._run(confirmed=confirmed)
        except BinaryStorageError as failure:
            error = failure
        report.duration = time.monotonic() - began
        if error is None:
            await self._conclude(report.trouble)
            return report
        # The catalog may be there again, or may only have been busy: then the record says what came of the pass.
        with suppress(BinaryStorageError):
            await self._conclude(f"it ended early: {error}")
        raise error

    async def _run(self, *, confirmed: bool) -> None:
        if confirmed:
            await breaker.confirm(self._engine)
        else:
            self._report.stopped = await breaker.reason_to_stop(self._engine)
        if self._report.stopped is None:
            await self._bury()
            await self._lapse()
            await self._reap_storages()
            await self._prune()

    async def _bury(self) -> None:
        """Declare silent instances dead, fail what they were doing, and forget what was in their memory."""
        silence = self._engine.settings.instance.timeout
        self._report.instances = await self._engine.database.write(lambda own: instance.declare_dead(own, silence))
        # fail point: reap.buried
        await self._engine.database.write(instance.fail_lost)
        # fail point: reap.lost-failed
        async with self._engine.database.reading() as connection:
            forgotten = await instance.memory_of_the_stopped(connection)
        for name in forgotten:
            if not self._stopping():
                self._report.references += await forget_memory(
                    self._engine.database, name, batch=self._settings.batch_size, instance_id=self._engine.instance_id
                )

    async def _lapse(self) -> None:
        """Release the holders whose lease is over, or whose instance has stopped."""
        batch = self._settings.batch_size
        while not self._stopping():
            released = await self._engine.database.transaction(lambda own: holder.lapse(own, batch))
            # fail point: reap.lapsed
            self._report.holders += released
            if released < batch:
                return

    async def _reap_storages(self) -> None:
        """Each storage by itself and all at once: what goes wrong in one part lets the others end."""
        names = list(self._engine.storages)
        ended = await asyncio.gather(*(self._reap_storage(name) for name in names), return_exceptions=True)
        for name, error in zip(names, ended, strict=True):
            if isinstance(error, Exception) and not isinstance(error, BinaryStorageError):
                logger.error("The reap of storage %r failed unexpectedly", name, exc_info=error)
                self._report.unreachable[name] = f"{type(error).__name__}: {error}"
        for error in ended:
            if isinstance(error, BinaryStorageError | asyncio.CancelledError):
                raise error

    async def _reap_storage(self, name: str) -> None:
        try:
            await self._engine.verify(name)
        except BinaryStorageError as error:
            self._report.unreachable[name] = str(error)
            return
        await self._strand(name)
        # Before the rest, which deletes its own objects: so a pass tries none twice.
        while self._deletes(name) and not self._stopping() and await self._delete(name) == self._settings.batch_size:
            pass
        # While the objects of one batch are deleted the catalog is busy with another, and no transaction is open
        # meanwhile. The lanes meet as two reapers do: what one has claimed the other skips. One that fails lets the
        # others end.
        lanes = (self._lane(name, share) for share in _shares(self._settings.concurrency))
        ended = await asyncio.gather(*lanes, return_exceptions=True)
        for failure in ended:
            if failure is not None:
                raise failure

    async def _lane(self, name: str, concurrency: int) -> None:
        """Reap references in batches, `concurrency` objects at once.

        Retention is what users see: references go on time also while the storage is slow, or does not answer for some
        objects. A later pass deletes theirs. Those of a storage that is away stay, as at the beginning of a pass.
        """
        batch = self._settings.batch_size
        expired = batch
        since: datetime | None = None
        while expired == batch and not self._stopping():
            if not self._deletes(name) and not await breaker.answers(self._engine, name):
                return
            expired, since = await self._expire(name, since, concurrency)

    def _deletes(self, name: str) -> bool:
        """Whether objects of the storage are still being deleted in this pass."""
        return name not in self._report.unreachable

    async def _expire(self, name: str, since: datetime | None, concurrency: int) -> tuple[int, datetime | None]:
        """Reap a batch of references that expired `since` then; gives back how many, and when the last one had."""
        settings = self._settings
        lease = settings.lease if self._deletes(name) else None
        unreferenced: set[uuid.UUID] = set()

        async def work(own: AsyncConnection) -> Expired:
            expired = await expiry.claim_expired(own, name, settings.batch_size, since, lease=lease)
            # fail point: reap.expired
            unreferenced.update(one.blob_id for one in expired.references)
            await write_reaped(own, self._engine.instance_id, expired.references)
            return expired

        # Acknowledged before the first object is touched: from here until the lease ends nobody else deletes these.
        references, blobs = await self._engine.database.transaction(
            work, ended=lambda: self._engine.forget(unreferenced)
        )
        # fail point: reap.expired-committed
        self._report.references += len(references)
        if lease is not None:
            await self._sweep(name, blobs, concurrency)
        return len(references), references[-1].expired_at if references else since

    async def _strand(self, name: str) -> None:
        while not self._stopping():
            stranded = await self._engine.database.write(
                lambda own: blob.claim_stranded(own, name, self._settings.write_grace, self._settings.batch_size)
            )
            # fail point: reap.stranded
            self._report.stranded += stranded
            if stranded < self._settings.batch_size:
                return

    async def _delete(self, name: str) -> int:
        """Delete a batch of objects; gives back how many were due."""
        # Acknowledged, as above.
        claimed = await self._engine.database.write(
            lambda own: blob.claim_due(own, name, self._settings.lease, self._settings.batch_size)
        )
        # fail point: reap.claimed
        await self._sweep(name, claimed, self._settings.concurrency)
        return len(claimed)

    async def _sweep(self, name: str, claimed: Sequence[ClaimedBlob], concurrency: int) -> None:
        if not claimed:
            return
        sweep = await sweep_objects(self._engine, name, claimed, concurrency=concurrency)
        size = sum(one.size or 0 for one in sweep.deleted)
        self._report.blobs += len(sweep.deleted)
        self._report.bytes += size
        self._running.advance(size)
        self._report.quarantined += sweep.quarantined
        self._report.failed += len(sweep.failed) - sweep.quarantined
        if sweep.trouble is not None:
            self._report.unreachable[name] = sweep.trouble

    async def _prune(self) -> None:
        age = self._engine.settings.operations.retention
        while age is not None and not self._stopping():
            pruned = await self._engine.database.write(lambda own: operation.prune_old(own, age, _PRUNE_BATCH))
            # fail point: reap.pruned
            self._report.pruned += pruned
            if pruned < _PRUNE_BATCH:
                break
        while age is not None and not self._stopping():
            forgotten = await self._engine.database.transaction(lambda own: instance.prune_old(own, age, _PRUNE_BATCH))
            # fail point: reap.instances-pruned
            if forgotten < _PRUNE_BATCH:
                return

    async def _conclude(self, trouble: str | None) -> None:
        """Log the pass and write it down, unless there was nothing to do."""
        if trouble is not None:
            logger.warning("A reap had trouble: %s", trouble)
        elif self._report.is_empty and not self._asked_for and not self._running.was_shown:
            self._running.recorded = False
            return
        logger.info("Reaped: %s", self._report.model_dump(exclude={"unreachable"}))
        status = OperationStatus.SUCCEEDED if trouble is None else OperationStatus.FAILED
        record = replace(self._running.record(status, trouble), detail=self._report.model_dump())
        await self._engine.database.write(lambda own: operation.write_ended(own, [record]))
        self._running.recorded = False


def _shares(concurrency: int) -> list[int]:
    """How many objects each lane deletes at once."""
    lanes = min(_LANES, concurrency)
    return [(concurrency + lane) // lanes for lane in range(lanes)]
