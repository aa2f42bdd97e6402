"""How far an operation is, measured while it runs, and what operations add up to."""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

REPORT_INTERVAL = 0.1
_LONGEST = timedelta.max.total_seconds()
_log = logging.getLogger(__name__)


class OperationStatus(StrEnum):
    """Where an operation is; the last three are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationProgress:
    """How far one operation was at one moment.

    Attributes:
        operation_id: the caller's, or one made for it.
        operation_type: `store`, `retrieve`, `delete`, `reap`, ...
        total_bytes: None while it is unknown.
        processed_bytes: bytes so far.
        status: one of `OperationStatus`.
        error: why it failed; None otherwise.
        started_at: UTC, by the database's clock wherever it was asked.
        elapsed: from its start until this moment or its end; never negative.
    """

    operation_id: uuid.UUID
    operation_type: str
    total_bytes: int | None = None
    processed_bytes: int = 0
    status: str = OperationStatus.RUNNING
    error: str | None = None
    started_at: datetime
    elapsed: timedelta

    @property
    def is_completed(self) -> bool:
        """Whether it has ended, however it ended."""
        return self.status != OperationStatus.RUNNING

    @property
    def completion_percentage(self) -> float | None:
        """0.0 to 100.0; None while the total is unknown. Of nothing, 100.0 once completed."""
        if self.total_bytes is None:
            return None
        if self.total_bytes == 0:
            return 100.0 if self.is_completed else 0.0
        return min(100.0, self.processed_bytes / self.total_bytes * 100)

    @property
    def elapsed_time(self) -> timedelta:
        """The same as `elapsed`."""
        return self.elapsed

    @property
    def bytes_per_second(self) -> float | None:
        """The rate over the whole time; None before there is a measurable time."""
        seconds = self.elapsed.total_seconds()
        return self.processed_bytes / seconds if seconds > 0 else None

    @property
    def estimated_remaining_time(self) -> timedelta | None:
        """At the rate so far; None when the total is unknown, nothing is done yet, or all is over."""
        rate = self.bytes_per_second
        if self.is_completed or self.total_bytes is None or not rate:
            return None
        seconds = max(0, self.total_bytes - self.processed_bytes) / rate
        return timedelta(seconds=seconds) if seconds < _LONGEST else None


class ProgressMeter:
    """Measures one operation of this process: `start`, `advance` as bytes pass, `finish`.

    Not for several threads at once.

    Args:
        operation_id: whose progress it is.
        operation_type: `store`, `retrieve`, ...
        total_bytes: None when it is unknown.
        on_progress: called at most every 0.1 seconds, and once at the end. It only watches: when it raises, that is
            logged and it is not called again.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        operation_id: uuid.UUID,
        operation_type: str,
        *,
        total_bytes: int | None = None,
        on_progress: Callable[[OperationProgress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operation_id = operation_id
        self._operation_type = operation_type
        self._on_progress = on_progress
        self._clock = clock
        self.start(total_bytes)

    def start(self, total_bytes: int | None = None, *, started_at: datetime | None = None) -> None:
        """Begin from zero, now; what was waited for since the meter was made does not count.

        Args:
            total_bytes: None when it is unknown.
            started_at: the database's time, when it was asked; this machine's otherwise. Only shown.
        """
        self._total_bytes = total_bytes
        self._started_at = started_at or datetime.now(UTC)
        self._processed_bytes = 0
        self._status = OperationStatus.RUNNING
        self._error: str | None = None
        self._began = self._reported = self._clock()
        self._ended: float | None = None

    def advance(self, count: int) -> None:
        """`count` more bytes have passed."""
        self._processed_bytes += count
        if self._on_progress is not None and self._clock() - self._reported >= REPORT_INTERVAL:
            self._report()

    def finish(self, status: OperationStatus = OperationStatus.SUCCEEDED, error: str | None = None) -> None:
        """It is over; the first call counts, later ones change nothing."""
        if self._ended is None:
            self._status, self._error, self._ended = status, error, self._clock()
            self._report()

    def snapshot(self) -> OperationProgress:
        """How far it is now."""
        until = self._clock() if self._ended is None else self._ended
        return OperationProgress(
            operation_id=self._operation_id,
            operation_type=self._operation_type,
            total_bytes=self._total_bytes,
            processed_bytes=self._processed_bytes,
            status=self._status,
            error=self._error,
            started_at=self._started_at,
            elapsed=timedelta(seconds=until - self._began),
        )

    def _report(self) -> None:
        if self._on_progress is None:
            return
        self._reported = self._clock()
        try:
            self._on_progress(self.snapshot())
        except Exception:  # noqa: BLE001 - the caller's code may raise anything; it is logged
            # Whoever watches must not turn bytes that are stored into a store that failed.
            _log.exception(
                "on_progress of %s %s raised; it is not called again", self._operation_type, self._operation_id
            )
            self._on_progress = None


@dataclass(frozen=True, slots=True)
class BasicStats:
    """Operations by how they ended, and the bytes that they moved; adds up with `+`."""

    total_operations: int = 0
    successful_operations: int = 0
    failed_operations: int = 0
    total_bytes_processed: int = 0
    cancelled_operations: int = 0
    running_operations: int = 0

    def __add__(self, other: "BasicStats") -> "BasicStats":
        return BasicStats(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))
