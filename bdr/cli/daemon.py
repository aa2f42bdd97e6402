"""The reaper as a service: joins the catalog, however long that takes, reaps, and leaves when it is told to."""

import asyncio
import logging
import random
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

from bdr.connect import connect
from bdr.errors import Busy, CatalogUnavailable, InstanceClosed, OutcomeUnknown, StorageUnavailable
from bdr.lifecycle import BinaryDataLifecycleManager
from bdr.reaper import ReapReport
from bdr.reaper.reap import reap
from bdr.reaper.schedule import ReaperSchedule
from bdr.settings import Settings
from bdr.settings.values import format_duration

logger = logging.getLogger(__name__)

# What passes by itself. Everything else, such as a wrong URL or an old schema, needs a person.
_PASSING: Final = (CatalogUnavailable, StorageUnavailable, Busy, OutcomeUnknown)
_FIRST_WAIT: Final = timedelta(seconds=1)
_LONGEST_WAIT: Final = timedelta(seconds=30)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """One reaper, from its start until a signal."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._told_to_stop = False
        self._leave = asyncio.Event()
        self._joining: asyncio.Task[object] | None = None

    async def run(self) -> None:
        """Reap until SIGTERM or SIGINT; raises what needs a person."""
        loop = asyncio.get_running_loop()
        for one in _SIGNALS:
            loop.add_signal_handler(one, self._stop, one)
        while not self._told_to_stop:
            # Here and not later: what connecting waits for may swallow the cancellation.
            self._leave.clear()
            async with AsyncExitStack() as stack:
                manager = await self._join(stack)
                if manager is not None:
                    await self._reap(manager)
        logger.info("Stopped.")

    def _stop(self, number: signal.Signals) -> None:
        loop = asyncio.get_running_loop()
        for one in _SIGNALS:
            loop.remove_signal_handler(one)
            # By the kernel, even where this process hangs. What it leaves behind is claimed again after its lease.
            signal.signal(one, signal.SIG_DFL)
        # Now that it is true: who reads this may send the second one.
        logger.info("%s: stopping after the batch that is under way; a second signal ends it at once.", number.name)
        self._told_to_stop = True
        self._leave.set()
        if self._joining is not None:
            self._joining.cancel()

    async def _join(self, stack: AsyncExitStack) -> BinaryDataLifecycleManager | None:
        """Connect, trying again while what is in the way passes by itself; None when told to stop meanwhile."""
        self._joining = task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs is in a task
        try:
            return await self._connected(stack)
        except asyncio.CancelledError:
            if not self._told_to_stop:
                raise
            task.uncancel()
            return None
        finally:
            self._joining = None

    async def _connected(self, stack: AsyncExitStack) -> BinaryDataLifecycleManager:
        wait = _FIRST_WAIT
        while True:
            try:
                return await stack.enter_async_context(connect(settings=self._settings))
            except _PASSING as error:
                logger.warning("Trying again in about %s: %s", format_duration(wait), error)
            # Reapers that were cut off together do not come back together.
            await asyncio.sleep(wait.total_seconds() * random.uniform(0.75, 1.25))  # noqa: S311 - guards nothing
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _reap(self, manager: BinaryDataLifecycleManager) -> None:
        """Run passes until told to stop, or until this instance was declared dead and has to join anew."""
        engine = manager.engine

        async def one_pass(stopping: Callable[[], bool]) -> ReapReport:
            try:
                return await reap(engine, manager.operations, stopping=stopping)
            except InstanceClosed:
                self._leave.set()
                raise

        schedule = ReaperSchedule(
            one_pass,
            interval=self._settings.lifecycle.cleanup_interval,
            backoff=self._settings.reaper.backoff_initial,
            backoff_max=self._settings.reaper.backoff_max,
            drain_timeout=self._settings.reaper.drain_timeout,
        )
        self._announce(manager)
        schedule.start()
        try:
            await self._leave.wait()
        finally:
            await schedule.stop()

    def _announce(self, manager: BinaryDataLifecycleManager) -> None:
        engine = manager.engine
        storages = ", ".join(f"{name} ({storage.location})" for name, storage in engine.storages.items())
        logger.info(
            "Reaping what has expired in %s, for the catalog at %s, every %s, as instance %s.",
            storages,
            engine.database.shown,
            format_duration(self._settings.lifecycle.cleanup_interval),
            engine.instance_id,
        )
