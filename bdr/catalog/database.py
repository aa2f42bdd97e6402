"""The seam to PostgreSQL: connections, and transactions whose outcome is known or said to be unknown.

Every driver error becomes one of `bdr.errors` here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DisconnectionError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, AsyncTransaction, create_async_engine

from bdr.catalog import url as urls
from bdr.catalog.drivers import Drivers
from bdr.catalog.prepared import Prepared
from bdr.catalog.session import open_connection
from bdr.catalog.translate import is_lost, may_have_happened, translated
from bdr.catalog.turns import Turns
from bdr.errors import Busy, CatalogUnavailable, InstanceClosed, InvalidArgument, OperationError, OutcomeUnknown
from bdr.settings import DatabaseConfig
from bdr.settings.values import format_duration

__all__ = ["Database", "Work", "as_connection", "translated"]

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]
Values = Callable[[], Mapping[str, Any] | None]

log = logging.getLogger(__name__)

_FAILED: Final = "bdr_statement_failed"


class Database:
    """A pool of connections to one catalog.

    What ends without an answer is told apart: `transaction` and `write` raise OutcomeUnknown exactly when the server
    may have committed, and every other error of theirs means that nothing happened.
    """

    def __init__(self, url: str, *, config: DatabaseConfig, application_name: str = "bdr") -> None:
        """Check `url`, without connecting; ConfigError says what is wrong with it."""
        self._url = urls.parse(url, application_name=application_name)
        self._config = config
        self._turns = Turns(config.pool_size, config.pool_timeout)
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(open_connection, self._url, config),
            pool_size=config.pool_size,
            max_overflow=0,
        )
        self._autocommitting = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self._engine.sync_engine, "checkout", _replace_closed)
        event.listen(self._engine.sync_engine, "handle_error", _remember_failure)
        event.listen(self._engine.sync_engine, "rollback_savepoint", _forget_failure)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._drivers = Drivers(self._engine)
        self._borrowed = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self._url.shown

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection in autocommit mode, for statements that only read."""
        with translated(self.shown):
            async with self._borrow(self._autocommitting) as connection:
                yield connection

    async def write(
        self, work: Work[T], keys: Sequence[str] = (), what: str = "The operation", about: str | None = None
    ) -> T:
        """Run one statement that commits by itself; gives back what `work` does.

        `about` says what it is about where its keys are not known; one with neither is nobody's to ask after.
        Errors: OutcomeUnknown when the connection or the caller was lost while the statement was under way.
        """
        return await self._detached(self._write, work, _Progress(tuple(keys), what, about))

    async def transaction(
        self,
        work: Work[T],
        keys: Sequence[str] = (),
        what: str = "The operation",
        about: str | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> T:
        """Run `work` between BEGIN and COMMIT at READ COMMITTED; gives back what it does.

        `work` may catch an error of the database only around `begin_nested`. `ended` is called when the commit is over,
        whatever its answer, and whether or not the caller still waits.
        Errors: OutcomeUnknown when the connection was lost during COMMIT, or the caller while it was under way.
        """
        return await self._detached(self._transaction, work, _Progress(tuple(keys), what, about, ended))

    async def fetch(self, prepared: Prepared, values: Values) -> list[asyncpg.Record]:
        """Run one statement that commits by itself, past SQLAlchemy, on a connection of the same pool.

        `values` is called once there is a connection: until then nothing was sent, and nothing is if it gives None.
        Errors as `write`, without keys; but who calls is not told apart from the work: to be called in a task that
        nobody cancels.
        """
        with translated(self.shown):
            async with self._borrow_driver() as connection:
                if (given := values()) is None:
                    return []
                try:
                    return await prepared.fetch(connection, given)
                except Exception as error:
                    if may_have_happened(error):
                        raise OutcomeUnknown(()) from error
                    raise

    async def look_up(self, prepared: Prepared, values: Mapping[str, Any]) -> list[asyncpg.Record]:
        """Run one statement that only reads, past SQLAlchemy, on a connection of the same pool."""
        with translated(self.shown):
            async with self._borrow_driver() as connection:
                return await prepared.fetch(connection, values)

    async def connect_beside(self) -> asyncpg.Connection:
        """A connection that is not the pool's, and the caller's to close."""
        return await open_connection(self._url, self._config)

    async def close(self, patience: timedelta = timedelta(seconds=30)) -> None:
        """Refuse new work, wait for what is under way as long as `patience`, then drop all connections."""
        self._closed = True
        try:
            await asyncio.wait_for(self._idle.wait(), patience.total_seconds())
        except TimeoutError:
            log.warning("%d uses of %s were still under way when it was closed.", self._borrowed, self.shown)
            self._drivers.terminate()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drivers.close()
        await self._engine.dispose()

    @asynccontextmanager
    async def _borrow(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with self._in_use(), AsyncExitStack() as stack:
            self._drivers.make_room()
            with self._making():
                connection = await stack.enter_async_context(engine.connect())
            yield connection

    @asynccontextmanager
    async def _borrow_driver(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._in_use():
            lent = self._drivers.lend_kept()
            if lent is None:
                with self._making():
                    lent = await self._drivers.lend_another()
            usable = False
            try:
                yield lent.driver
                usable = True
            except Exception as error:
                # One whose answer did not come is not for anybody else, even if it is not closed yet.
                usable = not is_lost(error) and not isinstance(error, OutcomeUnknown)
                raise
            finally:
                self._drivers.take_back(lent, usable=usable)

    @asynccontextmanager
    async def _in_use(self) -> AsyncIterator[None]:
        self._require_open()
        self._borrowed += 1
        self._idle.clear()
        try:
            await self._take_turn()
            try:
                self._require_open()
                yield
            finally:
                self._turns.give()
        finally:
            self._borrowed -= 1
            if not self._borrowed:
                self._idle.set()

    def _require_open(self) -> None:
        if self._closed:
            raise InstanceClosed(f"The connections to {self.shown} are closed.")

    @contextmanager
    def _making(self) -> Iterator[None]:
        try:
            yield
        except (NotImplementedError, ResourceClosedError) as error:
            # On the first of all connections SQLAlchemy asks the server about itself. When that one is lost meanwhile,
            # it stumbles over dropping it. Nothing of ours was sent.
            raise CatalogUnavailable(f"The connection to {self.shown} was lost as it was made.") from error
        except AsyncAdapt_asyncpg_dbapi.Error as error:
            # `raw_connection` lets SQLAlchemy's own errors through, which it wraps everywhere else.
            if error.__cause__ is None:
                raise CatalogUnavailable(f"The connection to {self.shown} could not be made: {error}") from error
            raise error.__cause__ from error.__cause__.__cause__

    async def _take_turn(self) -> None:
        try:
            await self._turns.take()
        except TimeoutError:
            raise Busy(
                f"No connection to {self.shown} became free within {format_duration(self._config.pool_timeout)}; "
                f"nothing was done. This engine has {self._config.pool_size}: raise `database.pool_size`, or "
                "`database.pool_timeout` to wait longer."
            ) from None

    async def _detached(self, run: Callable[[Work[T], "_Progress"], Awaitable[T]], work: Work[T], at: "_Progress") -> T:
        # Who is cancelled, and what each then sees. The work runs in a task that the caller's cancellation does not
        # reach. Caller first: before the work has begun, the task is cancelled too and nothing happens. Work first: it
        # goes on to its end, and the caller, who cannot wait for that, is told that the outcome is unknown.
        task = asyncio.ensure_future(_translating(self.shown, run, work, at))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as cancelled:
            _abandon(task, at, cancelled)
        return task.result()

    async def _write(self, work: Work[T], at: "_Progress") -> T:
        async with self._borrow(self._autocommitting) as connection:
            at.begin()
            try:
                return await work(connection)
            except Exception as error:
                await _give_up(connection, error)
                if may_have_happened(error):
                    raise at.unknown() from error
                raise

    async def _transaction(self, work: Work[T], at: "_Progress") -> T:
        async with self._borrow(self._engine) as connection:
            at.begin()
            transaction = await connection.begin()
            connection.info.pop(_FAILED, None)
            try:
                done = await work(connection)
                await _refuse_failed(connection)
            except Exception as error:
                # Without a COMMIT the server rolls back, whatever becomes of the connection.
                await _give_up(connection, error)
                raise
            try:
                await self._commit(connection, transaction, at)
            finally:
                at.ended()
            return done

    async def _commit(self, connection: AsyncConnection, transaction: AsyncTransaction, at: "_Progress") -> None:
        # Once COMMIT is sent there are two orders. Server first: it committed, and the connection is lost before its
        # answer is read. Connection first: the server never saw COMMIT. Both look the same from here.
        try:
            await transaction.commit()
        except Exception as error:
            await _give_up(connection, error)
            if may_have_happened(error):
                raise at.unknown() from error
            raise


class _Progress:
    """How far a piece of work has come, and for whom."""

    def __init__(
        self, keys: tuple[str, ...], what: str, about: str | None, ended: Callable[[], None] = lambda: None
    ) -> None:
        self.ended = ended
        self.keys = keys
        self.what = what
        self.about = about
        self.begun = False
        self.abandoned = False

    def begin(self) -> None:
        # Waiting for a connection can end with one although the wait was cancelled (`asyncio.wait_for` prefers a
        # result that is there already): the caller is gone, so the work must not start.
        if self.abandoned:
            raise asyncio.CancelledError
        self.begun = True

    def unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(self.keys, self.what, self.about)


async def _translating(
    where: str, run: Callable[[Work[T], _Progress], Awaitable[T]], work: Work[T], at: _Progress
) -> T:
    with translated(where):
        return await run(work, at)


def _abandon(task: asyncio.Task[Any], at: _Progress, cancelled: asyncio.CancelledError) -> NoReturn:
    at.abandoned = True
    task.add_done_callback(_log_abandoned)
    if not at.begun:
        task.cancel()
        raise cancelled
    if at.keys or at.about:
        raise at.unknown() from cancelled
    raise cancelled


def _log_abandoned(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.debug("Work whose caller was cancelled failed: %s", error)


def _is_closed(connection: Any) -> bool:
    return bool(connection.is_closed())


def _replace_closed(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
    if _is_closed(connection.driver_connection):
        raise DisconnectionError("the server has closed this connection")


def _remember_failure(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.invalidated:
        context.connection.info[_FAILED] = True


def _forget_failure(connection: Connection, _name: str, _context: object) -> None:
    connection.info.pop(_FAILED, None)


async def _refuse_failed(connection: AsyncConnection) -> None:
    # PostgreSQL answers the COMMIT of a failed transaction by rolling back, without an error.
    if connection.invalidated or _FAILED in connection.info:
        raise OperationError("A statement of the transaction failed and nobody said so; it was rolled back.")
    raw = await connection.get_raw_connection()
    if _is_closed(raw.driver_connection):
        raise CatalogUnavailable("The connection to the database was lost before COMMIT was sent; nothing happened.")


async def _give_up(connection: AsyncConnection, error: Exception) -> None:
    # What is left of a lost connection is thrown away unasked; a ROLLBACK on it would fail, and hide `error`.
    if connection.closed or connection.invalidated:
        return
    raw = await connection.get_raw_connection()
    if is_lost(error) or _is_closed(raw.driver_connection):
        await connection.invalidate()


async def as_connection(connection: AsyncConnection | AsyncSession) -> AsyncConnection:
    """The connection of a caller's transaction; InvalidArgument when it is in autocommit mode and has none."""
    with translated():
        joined = await connection.connection() if isinstance(connection, AsyncSession) else connection
        raw = await joined.get_raw_connection()
    if raw.dbapi_connection is None or joined.dialect.detect_autocommit_setting(raw.dbapi_connection):
        raise InvalidArgument("The connection is in autocommit mode; give one inside a transaction (`engine.begin()`).")
    return joined
