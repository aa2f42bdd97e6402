"""BinaryDataLifecycleManager: counts, retention and the reaper, over the files of a BinaryDataManager."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import count
from bdr.catalog.count import Counted
from bdr.catalog.database import as_connection, translated
from bdr.errors import BinaryStorageError, FileNotFound, NotReferenced, OutcomeUnknown
from bdr.keys import is_file_key
from bdr.manager import BinaryDataManager
from bdr.manager.deletion import Deletion
from bdr.manager.engine import Engine
from bdr.manager.manager import CallersConnection
from bdr.manager.retrieval import not_found
from bdr.reaper.reap import ReapReport, reap
from bdr.reaper.schedule import ReaperSchedule

logger = logging.getLogger(__name__)

Count = Callable[[AsyncConnection, Sequence[str]], Awaitable[Mapping[str, Counted]]]


class BinaryDataLifecycleManager(BinaryDataManager):
    """Everything of BinaryDataManager, and the life of what it stores.

    A count is never repeated blindly: when the answer to one is lost, OutcomeUnknown carries the key, and the count
    was taken wholly or not at all.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._schedule: ReaperSchedule | None = None

    async def register_reference(self, key: str, *, connection: CallersConnection | None = None) -> int:
        """Count one more use of the file; gives back the new count. The access time becomes now.

        Args:
            connection: a transaction of the caller's to count in; a rollback takes the count back.

        Raises:
            FileNotFound: there is no such reference (any more).
            TransactionConflict: the caller's transaction lost against another one, at REPEATABLE READ or above.
        """
        counted = await self._count(key, count.register, "Registering", connection)
        assert counted.after is not None  # noqa: S101 - a reference that is there can always be registered
        return counted.after

    async def release_reference(self, key: str, *, connection: CallersConnection | None = None) -> int:
        """Count one use less; gives back the new count. At zero the retention begins; a retention of zero ends at once.

        Raises:
            NotReferenced: the count is zero already; it stays zero.
        """
        counted = await self._count(key, count.release, "Releasing", connection)
        if counted.after is None:
            raise NotReferenced(f"The reference {key!r} is not held any more; there is nothing to release.")
        if counted.after == 0 and counted.zero_ref_retention == timedelta(0) and connection is None:
            await self._cleanup_released(key)
        return counted.after

    async def cleanup_data(self, key: str, *, connection: CallersConnection | None = None) -> bool:
        """Delete the file if nothing refers to it, whatever its retention; False while something does, or it is pinned.

        With `connection` it is left to the reaper, and a registration before that saves it.
        """
        verdict = await self.delete(key, "cleanup", whatever_the_count=False, connection=connection)
        return verdict is Deletion.DELETED

    async def reap(self) -> ReapReport:
        """Run one pass of the reaper over the storages of this instance; safe beside any number of others."""
        return await reap(self.engine)

    async def start_cleanup_task(self) -> None:
        """Run passes in this process every `cleanup_interval`, until the connection closes.

        Does nothing when `auto_cleanup` is off, or when they run already.
        """
        self.engine.require_open()
        settings = self.engine.settings
        if not settings.lifecycle.auto_cleanup or self._schedule is not None:
            return
        self._schedule = ReaperSchedule(
            lambda stopping: reap(self.engine, stopping=stopping),
            interval=settings.lifecycle.cleanup_interval,
            backoff=settings.reaper.backoff_initial,
            backoff_max=settings.reaper.backoff_max,
            drain_timeout=settings.reaper.drain_timeout,
        )
        self._schedule.start()

    async def stop_cleanup_task(self) -> None:
        """Let a pass that is under way end after its batch, and start no other."""
        if self._schedule is not None:
            await self._schedule.stop()
            self._schedule = None

    async def _count(self, key: str, take: Count, what: str, connection: CallersConnection | None) -> Counted:
        self.engine.require_open()
        if not is_file_key(key):
            raise not_found(key)
        if connection is None:
            counted = await self.engine.database.write(lambda own: take(own, [key]), keys=[key], what=what)
        else:
            with translated():
                counted = await take(await as_connection(connection), [key])
        if counted[key].before is None:
            raise not_found(key)
        return counted[key]

    async def _cleanup_released(self, key: str) -> None:
        # The release counts whatever becomes of this: a reaper does it later.
        try:
            await self.cleanup_data(key)
        except FileNotFound:
            logger.debug("%s was released, and somebody else was quicker to clean it up", key)
        except BinaryStorageError as error:
            if isinstance(error, OutcomeUnknown) and error.cancelled:
                raise OutcomeUnknown([key], "Releasing") from error.__cause__
            logger.warning("%s was released and is left to the reaper: %s", key, error)
        except asyncio.CancelledError as cancelled:
            # A plain cancellation would say that nothing was counted.
            raise OutcomeUnknown([key], "Releasing") from cancelled
