"""BinaryDataLifecycleManager: counts, retention and the reaper, over the files of a BinaryDataManager."""

import uuid
from collections.abc import Iterable
from datetime import timedelta

from bdr.catalog import reference
from bdr.catalog.database import as_connection, translated
from bdr.catalog.holder import Holding, held_by, holders_of, let_all_go
from bdr.keys import is_file_key
from bdr.manager import BinaryDataManager
from bdr.manager.batch_counts import count_many, count_many_in
from bdr.manager.counting import Counting
from bdr.manager.deletion import CLEANUP, Deletion, cleanup_released
from bdr.manager.engine import Engine
from bdr.manager.explain import explain
from bdr.manager.explanation import Explanation
from bdr.manager.holding import Use, checked_holder, not_held, registering, releasing
from bdr.manager.manager import CallersConnection
from bdr.manager.operations import OnProgress
from bdr.manager.retrieval import absent, whole_row
from bdr.reaper.reap import reap
from bdr.reaper.report import ReapReport
from bdr.reaper.schedule import ReaperSchedule
from bdr.results import BatchResult


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
        return await self._count(key, self._registering(holder, lease, bound=bound), connection)

    async def release_reference(
        self, key: str, *, holder: str | None = None, connection: CallersConnection | None = None
    ) -> int:
        """Count one use less; gives back the new count. At zero the retention begins; a retention of zero ends at once.

        Args:
            holder: whose use it was; without one, a use that was registered without.

        Raises:
            NotReferenced: there is no such use; the count stays as it is.
        """
        return await self._count(key, releasing(holder), connection)

    async def register_many(
        self,
        keys: Iterable[str],
        *,
        holder: str | None = None,
        lease: timedelta | None = None,
        bound: bool = False,
        connection: CallersConnection | None = None,
    ) -> BatchResult[int]:
        """Count one more use of each file, in one statement for each 1,000; a result for each key, in their order.

        Each is what `register_reference` would give or raise, called for one after the other: a key that comes twice
        is counted twice. A file that somebody else keeps locked longer than `database.lock_timeout` is Busy, and a lost
        answer is the OutcomeUnknown of each key of its statement.

        Args:
            keys: any iterable; no more than 1,000 are taken from it ahead. An exception of its own is raised again, and
                what was counted before stays so.
            connection: as of `register_reference`. An error of the database ends your transaction, and is raised. Give
                keys in their order where there may be more than 1,000: two transactions could wait in a circle else.

        Raises:
            InvalidArgument: what is given cannot be for any of them.
            OutcomeUnknown: the caller was cancelled, with the keys of what was counted or may have been.
        """
        return await self._count_many(keys, self._registering(holder, lease, bound=bound), connection)

    async def release_many(
        self, keys: Iterable[str], *, holder: str | None = None, connection: CallersConnection | None = None
    ) -> BatchResult[int]:
        """Count one use less of each file; as `release_reference` for one after the other, else as `register_many`.

        Of a key that comes more often than it is held, the last releases are NotReferenced.
        """
        return await self._count_many(keys, releasing(holder), connection)

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
        await cleanup_released(self.engine, released)
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
        verdict = await self.delete(key, CLEANUP, connection=connection)
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

    async def _count(self, key: str, use: Use, connection: CallersConnection | None) -> int:
        self.engine.require_open()
        if not is_file_key(key):
            raise await absent(self.engine, key)
        if connection is not None:
            with translated():
                counted = (await use.take(await as_connection(connection), [key]))[key]
        elif use.holder is not None:
            found = await self.engine.database.write(lambda own: use.take(own, [key]), keys=[key], what=use.what)
            counted = found[key]
        else:
            counted = await self.counting.count(key, use.by)
        # fail point: count.counted
        if counted.before is None:
            raise await absent(self.engine, key)
        if counted.after is None:
            raise not_held(key, use.holder, counted)
        if use.by < 0 and counted.has_ended and connection is None:
            await self.deleting.cleanup_released(key, counted)
        return counted.after

    async def _count_many(
        self, keys: Iterable[str], use: Use, connection: CallersConnection | None
    ) -> BatchResult[int]:
        self.engine.require_open()
        if connection is None:
            return await count_many(self.engine, keys, use)
        with translated():
            joined = await as_connection(connection)
        return await count_many_in(joined, self.engine, keys, use)

    def _registering(self, holder: str | None, lease: timedelta | None, *, bound: bool) -> Use:
        return registering(holder, lease, self.engine.instance_id if bound else None)

    async def _set_pinned(self, key: str, *, pinned: bool) -> None:
        self.engine.require_open()
        if not is_file_key(key) or not await self.engine.database.write(
            lambda own: reference.set_pinned(own, key, pinned=pinned), keys=[key], what="Pinning"
        ):
            raise await absent(self.engine, key)
