"""What sessions use on the ground: the engine, its database and its storage, and connections for callers."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar, cast

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from bdr.catalog import publication
from bdr.catalog import storage as known_storages
from bdr.catalog.count import Counted
from bdr.catalog.database import Database, Values
from bdr.catalog.prepared import Prepared
from bdr.keys import new_id
from bdr.lifecycle import BinaryDataLifecycleManager
from bdr.manager.counting import Counting
from bdr.manager.engine import Engine
from bdr.manager.grouping import Ask
from bdr.settings import (
    BinaryStorageConfig,
    CacheConfig,
    DatabaseConfig,
    ReaperConfig,
    Settings,
    UploadConfig,
    load_settings,
)
from bdr.storage import BinaryDataStorage, OpenDalStorage, StorageMarker, open_storage
from tests.interleaving.ground import Ground
from tests.interleaving.schedule import PATIENCE, Schedule, arrive, pass_once, pause_at_statements
from tests.interleaving.state import State

T = TypeVar("T")
Level = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

LEVELS: Final[tuple[Level, ...]] = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
STORAGE: Final = "main"
# What a call of the storage is a step of; a marker only tells whether it is the right place.
_STEPS: Final = ("store", "store_stream", "retrieve", "delete", "delete_many", "get_metadata", "move")
_NOTHING: Final = timedelta(0)


class GroupedCounting(Counting):
    """Every count goes with a group, as if others came at the same moment, and not by itself."""

    async def count(self, key: str, by: int) -> Counted:
        ask: Ask[int, Counted] = Ask(by, key, "Counting")
        self._groups.add(ask)
        return await ask.answered()


class SteppedDatabase(Database):
    """A seam whose single statements commit in a step of their own, if they are to.

    PostgreSQL, too, runs a statement first and commits it then; that its rows are locked in between, and the change not
    seen yet, is an instant at which others do come in.
    """

    apart = True
    # Without it, every count goes by itself, and a publication finds its row locked, without asking: both wait.
    grouping = False

    async def write(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        keys: Sequence[str] = (),
        what: str = "The operation",
        about: str | None = None,
    ) -> T:
        return await (self.transaction if self.apart else super().write)(work, keys, what, about)

    async def fetch(self, prepared: Prepared, values: Values) -> list[Any]:
        if prepared is publication.PUBLISH[True] and not self.grouping:
            return []

        if (given := values()) is None:
            return []

        async def work(own: AsyncConnection) -> list[Any]:
            found = await own.exec_driver_sql(prepared.sql, tuple(prepared.arguments(given)))
            rows = list(found.mappings()) if found.returns_rows else []
            if not rows:
                # It locked and changed nothing: when it ends is nobody's concern.
                pass_once("COMMIT")
            return rows

        return await self.write(work)

    async def look_up(self, prepared: Prepared, values: Mapping[str, Any]) -> list[Any]:
        async with self.reading() as own:
            found = await own.exec_driver_sql(prepared.sql, tuple(prepared.arguments(values)))
            return list(found.mappings())


class _SteppedStorage:
    """A storage, each call of which is a step."""

    def __init__(self, storage: OpenDalStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if name not in _STEPS:
            return method

        async def step(*arguments: Any, **options: Any) -> Any:
            await arrive(f"storage.{name}")
            return await method(*arguments, **options)

        return step


class Stage(Ground):
    """The ground, and everything that sessions use on it.

    Attributes:
        callers: where callers get connections for their own transactions, by isolation level.
    """

    def __init__(
        self,
        database: SteppedDatabase,
        storage: OpenDalStorage,
        engines: Mapping[bool, Engine],
        callers: Mapping[Level, AsyncEngine],
        monitor: asyncpg.Connection,
    ) -> None:
        super().__init__(monitor, storage)
        self.database = database
        self.callers = callers
        self.schedule = Schedule(monitor)
        self._engines = engines

    @property
    def binary(self) -> BinaryDataLifecycleManager:
        """Another one for each session: what it remembers decides nothing, and what it gathers is one session's."""
        binary = BinaryDataLifecycleManager(self._engines[self.start.hasty])
        if self.database.grouping:
            binary.counting = GroupedCounting(self.database, 1, PATIENCE)
        return binary

    async def lay_out(self, state: State) -> None:
        """Make the catalog and the storage hold `state`, under new keys and ids."""
        await super().lay_out(state)
        self.database.apart, self.database.grouping = state.apart, state.grouping


def _hasty(settings: Settings) -> Settings:
    """With every lease and grace over at once: past what may be configured, but not what may happen."""
    upload = settings.upload.model_copy(update={"lease": _NOTHING})
    reaper = settings.reaper.model_copy(update={"lease": _NOTHING, "write_grace": _NOTHING})
    return settings.model_copy(update={"upload": upload, "reaper": reaper})


@asynccontextmanager
async def open_stage(url: str) -> AsyncIterator[Stage]:
    """A stage on a migrated catalog, whose sessions are only stopped where somebody plays them."""
    database = SteppedDatabase(url, config=DatabaseConfig(lock_timeout=PATIENCE))
    storage = await open_storage(BinaryStorageConfig(storage_type="memory"), name=STORAGE)
    monitor = await asyncpg.connect(url)
    callers = {level: _callers_engine(url, level) for level in LEVELS}
    for engine in (database._engine, *callers.values()):
        pause_at_statements(engine.sync_engine)
    # A session does one thing at a time, and always all of it.
    reaper, upload = ReaperConfig(concurrency=1), UploadConfig(reserve_ahead=0)
    settings = load_settings(database_url=url, cache=CacheConfig(capacity=0), reaper=reaper, upload=upload)
    engines = await _engines(settings, database, storage)
    try:
        yield Stage(database, storage, engines, callers, monitor)
    finally:
        for engine in callers.values():
            await engine.dispose()
        await monitor.close()
        await database.close()
        await storage.close()


def _callers_engine(url: str, level: Level) -> AsyncEngine:
    return create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), isolation_level=level)


async def _engines(settings: Settings, database: Database, storage: OpenDalStorage) -> dict[bool, Engine]:
    async with database.reading() as connection:
        catalog_id = await known_storages.catalog_id(connection)
    await storage.write_marker(StorageMarker(str(catalog_id), STORAGE))
    stepped = {STORAGE: cast("BinaryDataStorage", _SteppedStorage(storage))}
    return {
        hasty: Engine(_hasty(settings) if hasty else settings, database, catalog_id, new_id(), stepped, STORAGE)
        for hasty in (False, True)
    }
