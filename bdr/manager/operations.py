"""The operations of this instance: live while they run, then rows of the catalog."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from bdr.catalog import operation
from bdr.catalog.base import AnyRow
from bdr.catalog.database import Database
from bdr.catalog.operation import Record
from bdr.errors import InvalidArgument
from bdr.keys import new_id
from bdr.progress import BasicStats, OperationProgress, OperationStatus, ProgressMeter

# Records of reads that the catalog has not taken yet; when it is away for long, the oldest are given up.
_LIMIT = 10_000
_PRUNE_BATCH = 5000


class RunningOperation:
    """One operation under way; as a context manager it ends as its block does."""

    def __init__(
        self,
        operation_type: str,
        operation_id: uuid.UUID,
        instance_id: uuid.UUID,
        *,
        file_key: str | None,
        namespace: str | None,
        total_bytes: int | None,
        on_progress: Callable[[OperationProgress], None] | None,
        ended: Callable[["RunningOperation"], None],
    ) -> None:
        self.operation_id = operation_id
        self._operation_type = operation_type
        self._instance_id = instance_id
        self._file_key = file_key
        self._namespace = namespace
        self._ended = ended
        self._meter = ProgressMeter(operation_id, operation_type, on_progress=on_progress)
        self._meter.start(total_bytes)
        self.written_at: timedelta | None = None

    def advance(self, count: int) -> None:
        """`count` more bytes have passed."""
        self._meter.advance(count)

    def progress(self) -> OperationProgress:
        """How far it is now."""
        return self._meter.snapshot()

    def record(self, status: OperationStatus, error: str | None = None) -> Record:
        """What to write down if it has this status now."""
        now = self._meter.snapshot()
        return Record(
            operation_id=self.operation_id,
            operation_type=self._operation_type,
            instance_id=self._instance_id,
            status=status,
            elapsed=now.elapsed,
            file_key=self._file_key,
            namespace=self._namespace,
            total_bytes=now.total_bytes,
            processed_bytes=now.processed_bytes,
            error=error,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._meter.finish(status_of(error), None if error is None else str(error) or type(error).__name__)
        self._ended(self)


def status_of(error: BaseException | None) -> OperationStatus:
    """How an operation ended that ended with `error`."""
    if error is None:
        return OperationStatus.SUCCEEDED
    return OperationStatus.CANCELLED if isinstance(error, asyncio.CancelledError) else OperationStatus.FAILED


class Operations:
    """What runs in this instance, and the records that wait to be written.

    Args:
        interval: an operation that takes longer than this is shown to other instances, and renewed as often.
    """

    def __init__(self, database: Database, instance_id: uuid.UUID, interval: timedelta) -> None:
        self._database = database
        self._instance_id = instance_id
        self._interval = interval
        self._running: dict[uuid.UUID, RunningOperation] = {}
        self._unshared: set[uuid.UUID] = set()
        self._waiting: dict[uuid.UUID, Record] = {}

    def begin(
        self,
        operation_type: str,
        *,
        operation_id: uuid.UUID | str | None = None,
        file_key: str | None = None,
        namespace: str | None = None,
        total_bytes: int | None = None,
        on_progress: Callable[[OperationProgress], None] | None = None,
        shared: bool = True,
        recorded: bool = True,
    ) -> RunningOperation:
        """A new operation.

        Args:
            shared: whether other instances may see it while it runs.
            recorded: whether its end is written down from here; otherwise the caller does, in its own transaction.
        """

        def ended(one: RunningOperation) -> None:
            self._running.pop(one.operation_id, None)
            self._unshared.discard(one.operation_id)
            if recorded:
                last = one.progress()
                self._wait_with(one.record(OperationStatus(last.status), last.error))

        running = RunningOperation(
            operation_type,
            new_id() if operation_id is None else _as_id(operation_id),
            self._instance_id,
            file_key=file_key,
            namespace=namespace,
            total_bytes=total_bytes,
            on_progress=on_progress,
            ended=ended,
        )
        self._running[running.operation_id] = running
        if not shared:
            self._unshared.add(running.operation_id)
        return running

    async def require_unused(self, operation_id: uuid.UUID | str | None) -> None:
        """Raise InvalidArgument when there is an operation with this id already."""
        if operation_id is not None and await self.progress(operation_id) is not None:
            raise InvalidArgument(f"There is an operation {operation_id} already; give each one an id of its own.")

    async def progress(self, operation_id: uuid.UUID | str) -> OperationProgress | None:
        """How far an operation of any instance is; None when nothing is known of it."""
        wanted = _as_id(operation_id)
        if wanted in self._running:
            return self._running[wanted].progress()
        if wanted in self._waiting:
            await self.flush()
        async with self._database.reading() as connection:
            row = await operation.find(connection, wanted)
        return None if row is None else as_progress(row)

    async def flush(self) -> None:
        """Write the records that wait, and how far those are that take long."""
        ended, self._waiting = self._waiting, {}
        if ended:
            try:
                await self._database.write(lambda own: operation.write_ended(own, list(ended.values())))
            except BaseException:
                for record in (ended | self._waiting).values():
                    self._wait_with(record)
                raise
        long = [running for running in self._running.values() if self._is_due(running)]
        if long:
            records = [running.record(OperationStatus.RUNNING) for running in long]
            await self._database.write(lambda own: operation.write_running(own, records))
            for running in long:
                running.written_at = running.progress().elapsed

    async def stats(self) -> BasicStats:
        """All operations of all instances, ever."""
        async with self._database.reading() as connection:
            totals = await operation.totals(connection)
        counts = {status: totals.get(status, (0, 0))[0] for status in OperationStatus}
        return BasicStats(
            total_operations=sum(counts.values()),
            successful_operations=counts[OperationStatus.SUCCEEDED],
            failed_operations=counts[OperationStatus.FAILED],
            total_bytes_processed=sum(size for _, size in totals.values()),
            cancelled_operations=counts[OperationStatus.CANCELLED],
            running_operations=counts[OperationStatus.RUNNING],
        )

    async def latest(self, limit: int, *, running: bool) -> list[AnyRow]:
        """The newest records of all instances."""
        await self.flush()
        async with self._database.reading() as connection:
            return list(await operation.latest(connection, limit, running=running))

    async def prune_but_newest(self, keep: int) -> int:
        """Move all ended records but the newest `keep` into the totals; gives back how many."""
        await self.flush()
        pruned = 0
        while batch := await self._database.write(lambda own: operation.prune_but_newest(own, keep, _PRUNE_BATCH)):
            pruned += batch
        return pruned

    def _is_due(self, running: RunningOperation) -> bool:
        if running.operation_id in self._unshared:
            return False
        return running.progress().elapsed - (running.written_at or timedelta(0)) >= self._interval

    def _wait_with(self, record: Record) -> None:
        if len(self._waiting) >= _LIMIT:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[record.operation_id] = record


def as_progress(row: AnyRow) -> OperationProgress:
    """The progress that a row of the catalog tells."""
    return OperationProgress(
        operation_id=row.operation_id,
        operation_type=row.operation_type,
        total_bytes=row.total_bytes,
        processed_bytes=row.processed_bytes,
        status=row.status,
        error=row.error,
        started_at=row.started_at,
        elapsed=row.elapsed,
    )


def _as_id(operation_id: uuid.UUID | str) -> uuid.UUID:
    if isinstance(operation_id, uuid.UUID):
        return operation_id
    try:
        return uuid.UUID(operation_id)
    except ValueError:
        raise InvalidArgument(f"{operation_id!r} is no operation id; give a UUID.") from None
