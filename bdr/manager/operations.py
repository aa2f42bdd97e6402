"""The operations of this instance: live while they run, then rows of the catalog."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Self

from bdr.catalog import operation
from bdr.catalog.base import AnyRow
from bdr.catalog.database import Database, Work
from bdr.catalog.operation import Record
from bdr.errors import BinaryStorageError, CatalogUnavailable, InvalidArgument, OutcomeUnknown
from bdr.keys import new_id
from bdr.progress import BasicStats, OperationProgress, OperationStatus, ProgressMeter

OnProgress = Callable[[OperationProgress], None]

# Records that the catalog has not taken yet; when it is away for long, the oldest are given up.
_LIMIT = 10_000
_PRUNE_BATCH = 5000


class RunningOperation:
    """One operation under way; as a context manager it ends as its block does.

    Attributes:
        shared: whether other instances may see it while it runs.
        recorded: whether its end is written down from here.
        written_at: how far it was in time when other instances were last told.
    """

    def __init__(
        self,
        operation_type: str,
        operation_id: uuid.UUID,
        instance_id: uuid.UUID,
        *,
        file_key: str | None,
        namespace: str | None,
        total_bytes: int | None,
        on_progress: OnProgress | None,
        shared: bool,
        recorded: bool,
        ended: Callable[["RunningOperation"], None],
    ) -> None:
        self.operation_id = operation_id
        self.shared = shared
        self.recorded = recorded
        self.written_at = timedelta(0)
        self._operation_type = operation_type
        self._instance_id = instance_id
        self._file_key = file_key
        self._namespace = namespace
        self._ended = ended
        self._meter = ProgressMeter(operation_id, operation_type, total_bytes=total_bytes, on_progress=on_progress)

    @property
    def was_shown(self) -> bool:
        """Whether other instances were told of it, or are being told just now."""
        return self.written_at > timedelta(0)

    def advance(self, count: int) -> None:
        """`count` more bytes have passed."""
        self._meter.advance(count)

    def progress(self) -> OperationProgress:
        """How far it is now."""
        return self._meter.snapshot()

    def record(self, status: OperationStatus | None = None, error: str | None = None) -> Record:
        """What to write down if it has this status now; without one, as it ended."""
        now = self._meter.snapshot()
        if status is None:
            status, error = OperationStatus(now.status), now.error
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
        self._meter.finish(status_of(error), None if error is None else text_of(error))
        self._ended(self)


def status_of(error: BaseException | None) -> OperationStatus:
    """How an operation ended that ended with `error`."""
    if error is None:
        return OperationStatus.SUCCEEDED
    return OperationStatus.CANCELLED if isinstance(error, asyncio.CancelledError) else OperationStatus.FAILED


def text_of(error: BaseException) -> str:
    """What is written down of an error; one that is not ours says little without its class."""
    if isinstance(error, BinaryStorageError):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")


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
        self._claimed: set[uuid.UUID] = set()
        # Each with the monotonic time at which it ended.
        self._waiting: OrderedDict[uuid.UUID, tuple[Record, float]] = OrderedDict()
        self._flushing = asyncio.Lock()

    async def begin(
        self,
        operation_type: str,
        *,
        operation_id: uuid.UUID | str | None = None,
        file_key: str | None = None,
        namespace: str | None = None,
        total_bytes: int | None = None,
        on_progress: OnProgress | None = None,
        shared: bool = True,
        recorded: bool = True,
    ) -> RunningOperation:
        """A new operation, to be entered at once; InvalidArgument when there is one with the caller's id already.

        Args:
            shared: whether other instances may see it while it runs.
            recorded: whether its end is written down from here; otherwise the caller does, or nobody.
        """
        running = RunningOperation(
            operation_type,
            new_id() if operation_id is None else _as_id(operation_id),
            self._instance_id,
            file_key=file_key,
            namespace=namespace,
            total_bytes=total_bytes,
            on_progress=on_progress,
            shared=shared,
            recorded=recorded,
            ended=self._ended,
        )
        if operation_id is not None:
            await self._require_unused(running.operation_id)
        self._running[running.operation_id] = running
        return running

    async def progress(self, operation_id: uuid.UUID | str) -> OperationProgress | None:
        """How far an operation of any instance is; None when nothing is known of it."""
        wanted = _as_id(operation_id)
        if wanted in self._running:
            return self._running[wanted].progress()
        return await self._recorded(wanted)

    async def flush(self) -> None:
        """Write the records that wait, and how far those are that take long.

        One at a time: when it returns, whatever waited before it was called is written.
        """
        async with self._flushing:
            await self._write_ended()
            await self._write_running()

    async def stats(self) -> BasicStats:
        """All operations of all instances, ever."""
        await self.flush()
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
        pruned, batch = 0, _PRUNE_BATCH
        # A batch that is not full is the last: what is written meanwhile must not keep this going for ever.
        while batch == _PRUNE_BATCH:
            batch = await self._database.write(lambda own: operation.prune_but_newest(own, keep, _PRUNE_BATCH))
            pruned += batch
        return pruned

    async def _require_unused(self, wanted: uuid.UUID) -> None:
        # Of two that come at once with one id, the first has it in `_claimed` before it asks the catalog.
        taken = InvalidArgument(f"There is an operation {wanted} already; give each one an id of its own.")
        if wanted in self._running or wanted in self._claimed:
            raise taken
        self._claimed.add(wanted)
        try:
            if await self._recorded(wanted) is not None:
                raise taken
        finally:
            self._claimed.discard(wanted)

    async def _recorded(self, wanted: uuid.UUID) -> OperationProgress | None:
        if wanted in self._waiting or self._flushing.locked():
            await self.flush()
        async with self._database.reading() as connection:
            row = await operation.find(connection, wanted)
        return None if row is None else as_progress(row)

    def _ended(self, running: RunningOperation) -> None:
        self._running.pop(running.operation_id, None)
        if running.recorded:
            self._wait_with(running.record(), time.monotonic())

    async def _write_ended(self) -> None:
        ended, self._waiting = self._waiting, OrderedDict()
        if not ended:
            return
        now = time.monotonic()
        records = [replace(record, ago=timedelta(seconds=now - at)) for record, at in ended.values()]
        try:
            await self._write(lambda own: operation.write_ended(own, records))
        except BaseException:
            newer, self._waiting = self._waiting, OrderedDict()
            for record, at in (ended | newer).values():
                self._wait_with(record, at)
            raise

    async def _write_running(self) -> None:
        long = [running for running in self._running.values() if self._is_due(running)]
        if not long:
            return
        records = [running.record(OperationStatus.RUNNING) for running in long]
        # Before they are written: one that ends meanwhile has to write down that it did.
        for running, record in zip(long, records, strict=True):
            running.written_at = record.elapsed
        await self._write(lambda own: operation.write_running(own, records))

    async def _write(self, work: Work[None]) -> None:
        try:
            await self._database.write(work)
        except OutcomeUnknown as error:
            # What was written will be written again, and changes nothing then.
            raise CatalogUnavailable("The connection was lost while operations were written; they are kept.") from error

    def _is_due(self, running: RunningOperation) -> bool:
        shown = running.shared and running.recorded
        return shown and running.progress().elapsed - running.written_at >= self._interval

    def _wait_with(self, record: Record, at: float) -> None:
        if len(self._waiting) >= _LIMIT:
            self._waiting.popitem(last=False)
        self._waiting[record.operation_id] = record, at


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
    except (ValueError, TypeError, AttributeError):
        raise InvalidArgument(f"{operation_id!r} is no operation id; give a UUID.") from None
