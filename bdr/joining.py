"""Puts an engine together, and takes it apart in the right order."""

import hashlib
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from bdr.catalog import instance
from bdr.catalog import storage as known_storages
from bdr.catalog.database import Database
from bdr.catalog.hints import Hints
from bdr.catalog.listening import Listener
from bdr.catalog.migrate import require_current, upgrade
from bdr.catalog.storage import KnownStorage
from bdr.errors import BinaryStorageError, StorageMismatch, StorageUnavailable
from bdr.keys import encode, new_id
from bdr.lifecycle import BinaryDataLifecycleManager
from bdr.manager.background import Background
from bdr.manager.deletion import forget_memory
from bdr.manager.engine import Engine
from bdr.manager.locations import Locations
from bdr.settings import BinaryStorageConfig, Settings, StorageType
from bdr.storage import open_storage
from bdr.storage.protocol import BinaryDataStorage, StorageMarker

logger = logging.getLogger(__name__)


async def joined(settings: Settings, stack: AsyncExitStack) -> BinaryDataLifecycleManager:
    """A new engine instance of the catalog; it leaves when the stack ends."""
    database = await open_database(settings, stack)
    engine = await _join(settings, database, stack)
    _remember(engine, stack)
    manager = BinaryDataLifecycleManager(engine)
    stack.push_async_callback(manager.retrievals.cache.close)
    background = Background(manager)
    background.start()
    stack.push_async_callback(background.stop)
    # Signs of life go on as long as anything of this instance waits for its turn.
    stack.push_async_callback(_give_back, manager)
    stack.push_async_callback(manager.uploads.publishing.close)
    # After the counts: a release that has been counted deletes what it ended.
    stack.push_async_callback(manager.deleting.close)
    stack.push_async_callback(manager.counting.close)
    stack.push_async_callback(manager.stop_cleanup_task)
    stack.callback(engine.close, "This connection to the catalog is closed.")
    return manager


def _remember(engine: Engine, stack: AsyncExitStack) -> None:
    """Remember where files lie, and tell and hear what makes that wrong."""
    hints = Hints(engine.database)
    engine.tell = hints.tell
    stack.push_async_callback(hints.close)
    limit = engine.settings.cache.locations
    if limit:
        engine.locations = Locations(limit)
        listener = Listener(engine.database.connect_beside, engine.instance_id, engine.locations)
        engine.at_close = listener.stop
        listener.start()
        stack.push_async_callback(listener.close)


async def open_database(settings: Settings, stack: AsyncExitStack) -> Database:
    """The catalog's database: the configured one, or the embedded one, which is started and migrated."""
    url = await stack.enter_async_context(database_url(settings))
    is_embedded = settings.database_url is None
    migrate = is_embedded if settings.migrate_on_start is None else settings.migrate_on_start
    database = Database(url, config=settings.database, application_name=f"bdr {settings.instance.name}"[:63])
    stack.push_async_callback(database.close)
    if migrate:
        await upgrade(url)
    await require_current(database)
    return database


@asynccontextmanager
async def database_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of the configured database, or of the embedded one, which runs meanwhile; migrated or not."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from bdr.embedded import EmbeddedPostgres

    async with EmbeddedPostgres(settings.data_dir / "postgres") as url:
        yield url


def configured_storages(settings: Settings) -> Mapping[str, BinaryStorageConfig]:
    """The storages by name; a folder beside the embedded database when no setting names any."""
    embedded = BinaryStorageConfig(storage_type=StorageType.FS, root=str(settings.data_dir / "objects"))
    return settings.storages or {settings.default_storage: embedded}


async def _join(settings: Settings, database: Database, stack: AsyncExitStack) -> Engine:
    instance_id = new_id()
    async with database.reading() as connection:
        catalog_id = await known_storages.catalog_id(connection)
    row = {
        "instance_id": instance_id,
        "name": settings.instance.name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": version("bdr"),
    }
    memory: list[str] = []
    # Before the row is written: the answer to that may be lost.
    stack.push_async_callback(_leave, database, instance_id, memory, settings.reaper.batch_size)
    await database.write(lambda own: instance.start(own, row))
    opened: dict[str, BinaryDataStorage] = {}
    engine = Engine(settings, database, catalog_id, instance_id, opened, settings.default_storage)
    for name, config in configured_storages(settings).items():
        storage = await open_storage(config, name=name)
        stack.push_async_callback(storage.close)
        known = _as_known(name, storage, instance_id)
        opened[known.name] = storage
        if known.instance_id is not None:
            memory.append(known.name)
        if name == settings.default_storage:
            engine.default_storage = known.name
        await _introduce(engine, known, storage)
    return engine


def _as_known(name: str, storage: BinaryDataStorage, instance_id: uuid.UUID) -> KnownStorage:
    """How the catalog knows the storage; one in memory is another one in each process."""
    if storage.storage_type != StorageType.MEMORY:
        return KnownStorage(name, storage.storage_type, storage.location, storage.fingerprint, None, marked=False)
    own = hashlib.sha256(f"{storage.fingerprint} {instance_id}".encode()).hexdigest()
    return KnownStorage(
        f"{name}@{encode(instance_id)}", storage.storage_type, storage.location, own, instance_id, marked=False
    )


async def _introduce(engine: Engine, own: KnownStorage, storage: BinaryDataStorage) -> None:
    """Agree with the catalog on what the storage's name means, and see that the storage agrees too."""
    while not await _is_marked(engine, own):
        # fail point: begin.introduced
        if await storage.read_marker() is None:
            await storage.write_marker(StorageMarker(str(engine.catalog_id), own.name))
        # fail point: begin.marker-written
        await engine.verify(own.name)
        await engine.database.write(lambda connection: known_storages.mark(connection, own))
        # fail point: begin.marked
    try:
        await engine.verify(own.name)
    except StorageUnavailable as error:
        logger.warning("%s Its files cannot be used until it is back.", error)


async def _is_marked(engine: Engine, own: KnownStorage) -> bool:
    rows = await engine.database.transaction(lambda connection: known_storages.introduce(connection, own))
    for row in rows:
        if (row.name, row.fingerprint) != (own.name, own.fingerprint):
            raise StorageMismatch(
                f"The catalog knows storage '{row.name}' as {row.storage_type} at {row.root}; configured here is "
                f"'{own.name}' as {own.storage_type} at {own.root}. Two engines must mean one place by one name: "
                "correct the configuration, or use another name."
            )
    # None: somebody else's row was in the way, and is gone again.
    return any(row.marked for row in rows)


async def _give_back(manager: BinaryDataLifecycleManager) -> None:
    """Delete the rows that were reserved and not needed; a reaper does it if this fails."""
    try:
        await manager.uploads.reserving.close()
    except BinaryStorageError as error:
        logger.warning("Reservations that were not needed are left to their deadline: %s", error)


async def _leave(database: Database, instance_id: uuid.UUID, memory: Sequence[str], batch: int) -> None:
    """Say that the instance is gone, and forget what was in its memory; a reaper does both if this fails."""
    try:
        await database.write(lambda own: instance.stop(own, instance_id))
        for name in memory:
            await forget_memory(database, name, batch=batch, instance_id=instance_id)
    except BinaryStorageError as error:
        logger.warning("Instance %s could not say good-bye to the catalog: %s", instance_id, error)
