"""What an instance does beside its calls: signs of life, deadlines of uploads, access times, progress."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from bdr.catalog import instance
from bdr.catalog.turns import ahead
from bdr.errors import BinaryStorageError
from bdr.manager.manager import BinaryDataManager

logger = logging.getLogger(__name__)


@dataclass
class _Step:
    """Something to do every `interval`; `failing_since` is None while it can be done."""

    do: Callable[[], Awaitable[None]]
    interval: timedelta
    done_at: float = field(default_factory=time.monotonic)
    failing_since: float | None = None

    @property
    def due_in(self) -> float:
        return max(0.0, self.done_at + self.interval.total_seconds() - time.monotonic())


class Background:
    """One task that writes, every so often, what was gathered meanwhile; nothing when there is nothing."""

    def __init__(self, manager: BinaryDataManager) -> None:
        settings = manager.engine.settings
        flush = settings.access.flush_interval
        self._engine = manager.engine
        # Deadlines first: an upload that misses its own is lost, the rest is only late.
        self._steps = (
            _Step(manager.uploads.renew, min(flush, settings.upload.lease / 4)),
            _Step(self._beat, settings.instance.heartbeat_interval),
            _Step(manager.access.flush, flush),
            _Step(manager.operations.flush, flush),
        )
        self._stopping = asyncio.Event()
        self._patience = flush
        self._dead = False
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
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), min(step.due_in for step in self._steps))
            except TimeoutError:
                for step in self._steps:
                    if not step.due_in:
                        await self._attempt(step)
        for step in self._steps:
            await self._attempt(step)

    async def _attempt(self, step: _Step) -> None:
        """A step that fails is tried again soon; one line says when the trouble began and ended."""
        step.done_at = time.monotonic()
        try:
            with ahead():
                await step.do()
        except BinaryStorageError as error:
            step.done_at -= max(0.0, (step.interval - self._patience).total_seconds())
            if step.failing_since is None:
                step.failing_since = time.monotonic()
                logger.warning("The catalog does not take what was gathered, trying again: %s", error)
        except Exception:
            # Whatever is wrong with one step, the others must go on: without signs of life the engine is declared dead.
            logger.exception("A mistake in what goes on in the background; trying again")
        else:
            if step.failing_since is not None:
                logger.info("The catalog took it after %.1f s", time.monotonic() - step.failing_since)
                step.failing_since = None

    async def _beat(self) -> None:
        engine = self._engine
        if self._dead or await engine.database.write(lambda own: instance.heartbeat(own, engine.instance_id)):
            return
        self._dead = True
        reason = (
            f"This engine instance ({engine.instance_id}) gave no sign of life for longer than "
            f"{engine.settings.instance.timeout} and was declared dead; what it was doing is being cleaned up. "
            "Connect again."
        )
        engine.close(reason)
        logger.error("%s", reason)
