"""BinaryDataLifecycleManager: counts, retention and the reaper, over the files of a BinaryDataManager."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import count, reference
from bdr.catalog.count import Counted
from bdr.catalog.database import as_connection, translated
from bdr.catalog.holder import Holding, acquire, held_by, holders_of, let_all_go, let_go
from bdr.errors import BinaryStorageError, InvalidArgument, OutcomeUnknown
from bdr.keys import is_file_key
from bdr.manager import BinaryDataManager
from bdr.manager.counting import Counting
from bdr.manager.deletion import Deletion, delete_references
from bdr.manager.engine import Engine
from bdr.manager.explain import explain
from bdr.manager.explanation import Explanation
from bdr.manager.holding import checked_holder, checked_lease, not_held
from bdr.manager.manager import CallersConnection
from bdr.manager.operations import OnProgress
from bdr.manager.retrieval import absent, whole_row
from bdr.reaper.reap import reap
from bdr.reaper.report import ReapReport
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
        # Half of the connections at most wait for locks.
        pool = engine.settings.database
        self.counting = Counting(engine.database, pool.pool_size // 2, pool.pool_timeout)
        self._schedule: ReaperSchedule | None = None

    async def register_reference(
        self,
        key: str,
        *,
        holder: str | None = None,
        lease: timedelta | None = None,
        bound: bool = False,
        connection: CallersConnection | None = None,
    ) -> int:
        """Count one more use of the file; gives back the new count. The access time becomes now.

        Args:
            holder: who uses it, such as `execution-42/node-3`, at most 256 characters. A holder counts once, however
                often it registers; each time renews its lease.
            lease: the holder is released so long after this, unless it registers again before; None is never.
            bound: the holder is released when this engine instance stops or is declared dead.
            connection: a transaction of the caller's to count in; a rollback takes the count back.

        Raises:
            FileNotFound: there is no such reference (any more).
            TransactionConflict: the caller's transaction lost against another one, at REPEATABLE READ or above.
        """
        if holder is None and (lease is not None or bound):
            raise InvalidArgument("A lease, and being bound to an instance, belong to a holder: give `holder` too.")
        if holder is not None:
            instance_id = self.engine.instance_id if bound else None
            take = partial(acquire, holder=checked_holder(holder), lease=checked_lease(lease), instance_id=instance_id)
            counted = await self._count(key, take, "Registering", connection)
        elif connection is not None:
            counted = await self._count(key, count.register, "Registering", connection)
        else:
            counted = await self._count_in_group(key, 1)
        assert counted.after is not None  # noqa: S101 - a reference that is there can always be registered
        return counted.after

    async def release_reference(
        self, key: str, *, holder: str | None = None, connection: CallersConnection | None = None
    ) -> int:
        """Count one use less; gives back the new count. At zero the retention begins; a retention of zero ends at once.

        Args:
            holder: whose use it was; without one, a use that was registered without.

        Raises:
            NotReferenced: there is no such use; the count stays as it is.
        """
        if holder is not None:
            counted = await self._count(key, partial(let_go, holder=checked_holder(holder)), "Releasing", connection)
        elif connection is not None:
            counted = await self._count(key, count.release, "Releasing", connection)
        else:
            counted = await self._count_in_group(key, -1)
        if counted.after is None:
            raise not_held(key, holder, counted)
        if connection is None:
            await self._cleanup_released({key: counted})
        return counted.after

    async def release_holder(self, holder: str, *, connection: CallersConnection | None = None) -> int:
        """Release all that `holder` holds, in one statement; gives back how many references that were."""
        name = checked_holder(holder)
        self.engine.require_open()
        if connection is not None:
            with translated():
                return len(await let_all_go(await as_connection(connection), name))
        released = await self.engine.database.write(
            lambda own: let_all_go(own, name), what="Releasing", about=f"all that {name!r} holds"
        )
        # fail point: holder.released
        await self._cleanup_released(released)
        return len(released)

    async def get_holders(self, key: str, limit: int = 1000) -> list[Holding]:
        """Who holds the file by name, at most `limit`, those first who have held it longest."""
        await whole_row(self.engine, key)
        async with self.engine.database.reading() as connection:
            return await holders_of(connection, key, limit)

    async def get_held(self, holder: str, limit: int = 1000) -> list[Holding]:
        """What is held by this name, at most `limit`, the oldest files first."""
        name = checked_holder(holder)
        self.engine.require_open()
        async with self.engine.database.reading() as connection:
            return await held_by(connection, name, limit)

    async def explain(self, key: str) -> Explanation:
        """Why the file is still there, or why and when it went; never an error for a key that is not there."""
        return await explain(self.engine, key)

    async def pin(self, key: str) -> None:
        """Keep the file whatever its count and retention, until it is unpinned."""
        await self._set_pinned(key, pinned=True)

    async def unpin(self, key: str) -> None:
        """Let the file's count and retention decide again; it may be expired at once."""
        await self._set_pinned(key, pinned=False)

    async def cleanup_data(self, key: str, *, connection: CallersConnection | None = None) -> bool:
        """Delete the file if nothing refers to it, whatever its retention; False while something does, or it is pinned.

        With `connection` it is left to the reaper, and a registration before that saves it.
        """
        verdict = await self.delete(key, "cleanup", whatever_the_count=False, connection=connection)
        return verdict is Deletion.DELETED

    async def reap(
        self,
        *,
        confirmed: bool = False,
        operation_id: uuid.UUID | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> ReapReport:
        """Run one pass of the reaper over the storages of this instance; safe beside any number of others.

        Args:
            confirmed: a person has looked, and the pass is to go on although very much would be deleted, or the
                database's clock has jumped.
            operation_id: under which to ask for progress, from any instance.
            on_progress: called with the bytes that were deleted so far; how many there will be is not known.
        """
        return await reap(
            self.engine, self.operations, confirmed=confirmed, operation_id=operation_id, on_progress=on_progress
        )

    async def start_cleanup_task(self) -> None:
        """Run passes in this process every `cleanup_interval`, until the connection closes.

        Does nothing when `auto_cleanup` is off, or when they run already.
        """
        self.engine.require_open()
        settings = self.engine.settings
        if not settings.lifecycle.auto_cleanup or self._schedule is not None:
            return
        self._schedule = ReaperSchedule(
            lambda stopping: reap(self.engine, self.operations, stopping=stopping),
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

    async def _count_in_group(self, key: str, by: int) -> Counted:
        self.engine.require_open()
        if is_file_key(key):
            counted = await self.counting.count(key, by)
            # fail point: count.grouped
            if counted.before is not None:
                return counted
        raise await absent(self.engine, key)

    async def _count(self, key: str, take: Count, what: str, connection: CallersConnection | None) -> Counted:
        self.engine.require_open()
        if not is_file_key(key):
            raise await absent(self.engine, key)
        if connection is None:
            counted = await self.engine.database.write(lambda own: take(own, [key]), keys=[key], what=what)
        else:
            with translated():
                counted = await take(await as_connection(connection), [key])
        # fail point: count.counted
        if counted[key].before is None:
            raise await absent(self.engine, key)
        return counted[key]

    async def _set_pinned(self, key: str, *, pinned: bool) -> None:
        self.engine.require_open()
        if not is_file_key(key) or not await self.engine.database.write(
            lambda own: reference.set_pinned(own, key, pinned=pinned), keys=[key], what="Pinning"
        ):
            raise await absent(self.engine, key)

    async def _cleanup_released(self, released: Mapping[str, Counted]) -> None:
        # The release counts whatever becomes of this: a reaper does it later.
        ended = [key for key, one in released.items() if one.after == 0 and one.zero_ref_retention == timedelta(0)]
        if not ended:
            return
        try:
            await delete_references(self.engine, ended, operation_type="cleanup", whatever_the_count=False)
        except BinaryStorageError as error:
            if isinstance(error, OutcomeUnknown) and error.cancelled:
                raise OutcomeUnknown(ended, "Releasing") from error.__cause__
            logger.warning("%s and what else was released with it is left to the reaper: %s", ended[0], error)
        except asyncio.CancelledError as cancelled:
            # A plain cancellation would say that nothing was counted.
            raise OutcomeUnknown(ended, "Releasing") from cancelled
