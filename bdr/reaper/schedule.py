"""When the reaper runs: APScheduler's interval with jitter, back-off through outages, a drain at the end."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from bdr.errors import BinaryStorageError, InstanceClosed
from bdr.reaper.reap import ReapReport

logger = logging.getLogger(__name__)

_JOB = "reap"


class ReaperSchedule:
    """Runs passes every `interval` until it is stopped, never two at once.

    A pass that fails, because the database is away for instance, is tried again after a while that doubles with each
    failure up to `backoff_max`; a storage that is away is the pass's own affair. Each start and interval is jittered,
    so that the reapers of many engines do not wake together.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], bool]], Awaitable[ReapReport]],
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
        self._stopping = False
        self._pass: asyncio.Task[None] | None = None
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    @property
    def is_running(self) -> bool:
        """Whether passes are being scheduled."""
        return bool(self._scheduler.running) and not self._stopping

    def start(self) -> None:
        """Begin; the first pass comes at once, give or take a jitter."""
        seconds = self._interval.total_seconds()
        self._scheduler.add_job(
            self._tick,
            "interval",
            id=_JOB,
            seconds=max(seconds, 0.01),
            jitter=int(seconds / 10) or None,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
            next_run_time=_soon(min(self._interval / 10, timedelta(seconds=10))),
        )
        self._scheduler.start()

    async def stop(self) -> None:
        """Start no further pass, let the current one end after its batch, and cancel it if it does not in time.

        The scheduler's own shutdown cancels a running coroutine; so the pass is awaited before.
        """
        self._stopping = True
        if not self._scheduler.running:
            return
        self._scheduler.pause()
        if self._pass is not None and not self._pass.done():
            _, late = await asyncio.wait([self._pass], timeout=self._drain_timeout.total_seconds())
            if late:
                logger.warning("A reap did not end within %s and is cancelled; leases expire", self._drain_timeout)
        self._scheduler.shutdown(wait=False)

    async def _tick(self) -> None:
        self._pass = asyncio.current_task()
        try:
            await self._run(lambda: self._stopping)
        except InstanceClosed as error:
            logger.error("The reaper stops: %s", error)  # noqa: TRY400 - its one sentence says all
            self._scheduler.remove_job(_JOB)
        except BinaryStorageError as error:
            self._failures += 1
            delay = min(self._backoff * 2 ** min(self._failures - 1, 20), self._backoff_max)
            logger.warning("A reap failed and is tried again in %s: %s", delay, error)
            self._scheduler.modify_job(_JOB, next_run_time=_soon(delay / 4, least=delay * 3 / 4))
        else:
            self._failures = 0


def _soon(spread: timedelta, least: timedelta = timedelta(0)) -> datetime:
    """A moment at least `least` from now, up to `spread` later: reapers of many engines must not wake together."""
    return datetime.now(UTC) + least + spread * random.random()  # noqa: S311 - spreads load, guards nothing
