"""What an instance does beside its calls: signs of life, deadlines of uploads, access times, progress."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from bdr.catalog import instance
from bdr.errors import BinaryStorageError
from bdr.manager.manager import BinaryDataManager

logger = logging.getLogger(__name__)


class Background:
    """One task that writes, every `flush_interval`, what was gathered meanwhile; nothing when there is nothing."""

    def __init__(self, manager: BinaryDataManager) -> None:
        self._manager = manager
        self._settings = manager.engine.settings
        self._stopping = asyncio.Event()
        self._beaten_at = time.monotonic()
        self._silent_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; `stop` ends it."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what is still waiting, once, and end."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        interval = self._settings.access.flush_interval.total_seconds()
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), interval)
            except TimeoutError:
                await self._tick()
        await self._tick()

    async def _tick(self) -> None:
        manager = self._manager
        # Deadlines first: an upload that misses its own is lost, the rest is only late.
        for step in (manager.uploads.renew, self._beat, manager.access.flush, manager.operations.flush):
            await self._attempt(step)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        """A step that fails is tried again at the next tick; one line says when the trouble began and ended."""
        try:
            await step()
        except BinaryStorageError as error:
            if self._silent_since is None:
                self._silent_since = time.monotonic()
                logger.warning("The catalog does not take what was gathered, trying again: %s", error)
        else:
            if self._silent_since is not None:
                logger.info("The catalog answers again after %.1f s", time.monotonic() - self._silent_since)
                self._silent_since = None

    async def _beat(self) -> None:
        engine = self._manager.engine
        now = time.monotonic()
        if now - self._beaten_at < self._settings.instance.heartbeat_interval.total_seconds():
            return
        alive = await engine.database.write(lambda own: instance.heartbeat(own, engine.instance_id))
        self._beaten_at = now
        if not alive:
            reason = (
                f"This engine instance ({engine.instance_id}) gave no sign of life for longer than "
                f"{self._settings.instance.timeout} and was declared dead; what it was doing is being cleaned up. "
                "Connect again."
            )
            engine.close(reason)
            logger.error("%s", reason)
