"""When the reaper runs: APScheduler's interval with jitter, back-off through outages, a drain at the end."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from bdr.errors import BinaryStorageError, InstanceClosed
from bdr.reaper.reap import Stopping
from bdr.reaper.report import ReapReport

logger = logging.getLogger(__name__)

_JOB = "reap"


class ReaperSchedule:
    """Runs passes every `interval` until it is stopped, never two at once: after one that took longer, at once.

    A pass that fails, because the database is away for instance, is tried again after a while that doubles with each
    failure up to `backoff_max`; a storage that is away is the pass's own affair. Each start and interval is jittered,
    so that the reapers of many engines do not wake together.
    """

    def __init__(
        self,
        run: Callable[[Stopping], Awaitable[ReapReport]],
        *,
        interval: timedelta,
        backoff: timedelta,
        backoff_max: timedelta,
        drain_timeout: timedelta,
    ) -> None:
        self._run = run
        self._interval = interval
        self._backoff = backoff
        self._backoff_max = backoff_max
        self._drain_timeout = drain_timeout
        self._failures = 0
        self._due = datetime.now(UTC)
        self._stopping = False
        self._stopped = asyncio.Lock()
        self._given_up = False
        self._pass: asyncio.Future[ReapReport] | None = None
        self._tick_under_way: asyncio.Task[Any] | None = None
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    @property
    def is_running(self) -> bool:
        """Whether passes are being scheduled."""
        return bool(self._scheduler.running) and not self._stopping and not self._given_up

    def start(self) -> None:
        """Begin; the first pass comes at once, give or take a jitter."""
        seconds = self._interval.total_seconds()
        self._scheduler.add_job(
            self._tick,
            "interval",
            id=_JOB,
            seconds=max(seconds, 0.01),
            jitter=seconds / 10,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
            next_run_time=_soon(min(self._interval / 10, timedelta(seconds=10))),
        )
        self._scheduler.add_listener(self._schedule_next, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        self._scheduler.start()

    async def stop(self) -> None:
        """Start no further pass, let the current one end after its batch, and cancel it if it does not in time."""
        self._stopping = True
        async with self._stopped:
            if not self._scheduler.running:
                return
            self._scheduler.pause()
            try:
                await self._drain()
            finally:
                self._scheduler.shutdown(wait=False)
            # The scheduler's shutdown is only asked for: it comes with the loop's next turn.
            await asyncio.sleep(0)

    async def _drain(self) -> None:
        """Wait for the pass; APScheduler's own shutdown would cancel it, and log that as an error."""
        # One that was started just now comes to its first line, and ends there, before the shutdown that follows.
        if self._pass is None or self._tick_under_way is None:
            return
        try:
            _, late = await asyncio.wait({self._pass}, timeout=self._drain_timeout.total_seconds())
            if late:
                logger.warning("A reap did not end within %s and is cancelled; leases expire", self._drain_timeout)
        finally:
            self._pass.cancel()
        await asyncio.wait({self._tick_under_way})

    async def _tick(self) -> None:
        if self._stopping:
            return
        self._tick_under_way = asyncio.current_task()
        # None comes due while one is under way: APScheduler would skip it, and warn of that each time.
        self._due = self._scheduler.get_job(_JOB).next_run_time
        self._scheduler.pause_job(_JOB)
        self._pass = asyncio.ensure_future(self._run(lambda: self._stopping))
        await asyncio.wait({self._pass})
        if self._pass.cancelled():
            return
        error = self._pass.exception()
        if isinstance(error, InstanceClosed):
            self._give_up(error)
        elif isinstance(error, BinaryStorageError):
            self._back_off(error)
        elif error is not None:
            raise error
        else:
            self._failures = 0

    def _schedule_next(self, _event: JobExecutionEvent) -> None:
        # By now APScheduler has counted the last one as ended; within `_tick` it has not, and would skip the next.
        if self.is_running:
            self._scheduler.modify_job(_JOB, next_run_time=max(self._due, datetime.now(UTC)))

    def _give_up(self, error: InstanceClosed) -> None:
        if not self._stopping:
            logger.error("The reaper stops: %s", error)
            self._scheduler.remove_job(_JOB)
            self._given_up = True

    def _back_off(self, error: BinaryStorageError) -> None:
        self._failures += 1
        doubled = self._backoff.total_seconds() * 2 ** min(self._failures - 1, 20)
        delay = timedelta(seconds=min(doubled, self._backoff_max.total_seconds()))
        logger.warning("A reap failed and is tried again in %s: %s", delay, error)
        self._due = _soon(delay / 4, least=delay * 3 / 4)


def _soon(spread: timedelta, least: timedelta = timedelta(0)) -> datetime:
    """A moment at least `least` from now, up to `spread` later: reapers of many engines must not wake together."""
    return datetime.now(UTC) + least + spread * random.random()  # noqa: S311 - spreads load, guards nothing
