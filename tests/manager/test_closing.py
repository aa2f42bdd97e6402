"""Closing a connection: whatever ends it, everything is let go of, and its manager serves no more."""

import asyncio
import inspect
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import bdr
from bdr import BinaryDataLifecycleManager, BinaryStorageConfig
from bdr.manager.deletion import Terms
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, RedisServer
from tests.guarantees import violations
from tests.lifecycle.support import HeldSource
from tests.manager.support import fetch, require_nothing_left
from tests.storage.helpers import until

MEMORY = BinaryStorageConfig(storage_type="memory")
KEY = "0" * 26


class Stop(Exception):
    """What a body raises."""


@pytest.mark.parametrize("error", [Stop, asyncio.CancelledError, KeyboardInterrupt])
async def test_an_exception_in_the_body_closes_as_well(database_url: str, error: type[BaseException]) -> None:
    kept: list[BinaryDataLifecycleManager] = []

    async def body() -> None:
        async with bdr.connect(database_url, MEMORY) as binary:
            kept.append(binary)
            await binary.store_data(b"hello")
            await binary.start_cleanup_task()
            raise error

    with pytest.raises(error):
        await body()
    with pytest.raises(bdr.InstanceClosed, match="This connection to the catalog is closed"):
        await kept[0].store_data(b"hello")
    await require_nothing_left(database_url)
    assert await fetch(database_url, "SELECT count(*) FROM bdr.blob") == [(0,)]


async def test_a_store_under_way_when_it_closes_leaves_nothing_without_an_owner(
    connect: Connect, database_url: str, fs_config: BinaryStorageConfig
) -> None:
    other = await connect()
    source = HeldSource(b"x" * 2_000_000, b"y" * 2_000_000)
    async with bdr.connect(database_url, fs_config) as binary:
        storing = asyncio.create_task(binary.store_stream(source.chunks()))
        await source.begun.wait()
    source.go_on.set()
    with pytest.raises(bdr.InstanceClosed):
        await storing
    assert await violations(other.engine.database, other.engine.storages) == []


async def test_a_read_under_way_when_it_closes_is_told_so(
    database_url: str, proxy: MakeProxy, redis_server: RedisServer, make_storage_config: MakeStorageConfig
) -> None:
    between = await proxy(redis_server.host, redis_server.port)
    place = make_storage_config("redis", config={"endpoint": f"redis://{between.host}:{between.port}"})
    async with bdr.connect(database_url, place) as binary:
        key = (await binary.store_data(b"hello")).file_key
        between.pause()
        reading = asyncio.create_task(binary.get_data(key))

        async def begun() -> bool:
            return len(binary.retrievals.cache._loading) == 1

        await until(begun)
    with pytest.raises(bdr.InstanceClosed, match="closed while the file was being read"):
        await reading
    await require_nothing_left(database_url)


# Every public verb with arguments of the right kind; none is left out, and none gets as far as looking at them.
CALLS: dict[str, tuple[Any, ...]] = {
    "cleanup_completed_operations": (5,),
    "cleanup_data": (KEY,),
    "data_exists": (KEY,),
    "delete": (KEY, Terms("delete", whatever_the_count=True)),
    "delete_data": (KEY,),
    "delete_many": ([KEY],),
    "register_many": ([KEY],),
    "release_many": ([KEY],),
    "store_many": ([],),
    "explain": (KEY,),
    "get_data": (KEY,),
    "get_details": (KEY,),
    "get_held": ("node",),
    "get_holders": (KEY,),
    "get_metadata": (KEY,),
    "get_operation_progress": ("0193a6b2-7c00-7000-8000-000000000001",),
    "get_range": (KEY, 0, 1),
    "get_reference": (KEY,),
    "get_stats": (),
    "list_references": (),
    "open": (KEY,),
    "pin": (KEY,),
    "reap": (),
    "register_reference": (KEY,),
    "release_holder": ("workflow 7",),
    "release_reference": (KEY,),
    "start_cleanup_task": (),
    "store_data": (b"hello",),
    "store_file": ("/no/such/file",),
    "unpin": (KEY,),
}
# It only ends what may be running.
HARMLESS = {"stop_cleanup_task"}


async def nothing() -> AsyncIterator[bytes]:
    yield b""


async def test_every_verb_of_a_closed_connection_says_so(database_url: str) -> None:
    async with bdr.connect(database_url, MEMORY) as binary:
        pass
    calls = CALLS | {"store_stream": (nothing(),)}
    verbs = {name for name, _ in inspect.getmembers(binary, callable) if not name.startswith("_")}
    assert verbs - HARMLESS == calls.keys()
    for name, arguments in calls.items():
        call = getattr(binary, name)(*arguments)
        with pytest.raises(bdr.InstanceClosed, match="This connection to the catalog is closed"):
            await (call.__aenter__() if name == "open" else call)
    await binary.stop_cleanup_task()
    assert await fetch(database_url, "SELECT count(*) FROM bdr.blob") == [(0,)]
    await require_nothing_left(database_url)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the embedded server's own user can reach; pytest's are for this user only."""
    with tempfile.TemporaryDirectory(prefix="bdr-c-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def files(folder: Path, name: str) -> list[Path]:
    """Those of that name in the data folders of embedded databases."""
    return list(folder.glob(f"postgres/*/{name}"))


async def test_the_embedded_database_is_started_migrated_and_stopped(home: Path) -> None:
    keys: list[str] = []

    async def body() -> None:
        async with bdr.connect(data_dir=home) as binary:
            keys.append((await binary.store_data(b"hello")).file_key)
            assert files(home, "postmaster.pid")
            raise Stop

    with pytest.raises(Stop):
        await body()
    assert not files(home, "postmaster.pid")
    async with bdr.connect(data_dir=home) as binary:
        assert await binary.get_data(keys[0]) == b"hello"
        assert (await binary.get_details(keys[0])).storage_name == "main"


async def test_an_embedded_database_that_may_not_be_migrated_is_stopped_again(home: Path) -> None:
    with pytest.raises(bdr.CatalogNotMigrated):
        await bdr.connect(data_dir=home, migrate_on_start=False).__aenter__()
    assert files(home, "PG_VERSION")
    assert not files(home, "postmaster.pid")
