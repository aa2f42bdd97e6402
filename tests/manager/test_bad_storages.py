"""Storages and databases that are full, read-only, gone, slow or down: said as it is, and all is well afterwards."""

import asyncio
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

import bdr
from bdr import BinaryDataLifecycleManager
from tests.fixtures.engines import Connect
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, RedisServer
from tests.guarantees import objects_in, violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import HeldSource, chunks, make_due, rows
from tests.manager.conftest import ConnectRedis
from tests.manager.support import NEVER, as_nobody, records
from tests.storage.helpers import run_python

# Files may not grow beyond 3 MiB there, which is what a full disk is to whoever writes one.
FULL = """
import resource
import bdr

async def chunks():
    for _ in range(20):
        yield bytes(1 << 20)

async def main():
    async with bdr.connect(sys.argv[1], BinaryStorageConfig(storage_type="fs", root=sys.argv[2])) as binary:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        for store in (binary.store_data(bytes(4 << 20)), binary.store_stream(chunks())):
            try:
                await store
            except bdr.BinaryStorageError as error:
                print(type(error).__name__, error)
        print((await binary.store_data(b"small")).file_key)
asyncio.run(main())
"""


async def require_well(binary: BinaryDataLifecycleManager) -> None:
    """Files can be stored and read, and nothing lies about that nobody owns; a reaper makes an end of the rest."""
    key = (await binary.store_data(b"after")).file_key
    assert await binary.get_data(key) == b"after"
    assert await violations(binary.engine.database, binary.engine.storages) == []
    await make_due(binary)
    report = await binary.reap()
    assert (report.failed, report.unreachable) == (0, {})
    assert await rows(binary, "SELECT DISTINCT state FROM bdr.blob") == [("live",)]
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert len(await objects_in(binary.engine.storage(binary.engine.default_storage))) == len(
        await rows(binary, "SELECT 1 FROM bdr.blob")
    )


async def test_a_storage_that_is_full_says_so_and_takes_what_still_fits(
    connect: Connect, database_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    binary = await connect()
    code, output, errors = await run_python(FULL, database_url, fs_config.root)
    assert (code, errors) == (0, "")
    one, many, key = output.splitlines()
    for line in (one, many):
        assert line.startswith("StorageFull could not write ")
        assert line.endswith("(make room there, or raise its limit)")
    assert await binary.get_data(key) == b"small"
    assert [status for status, _, _ in await records(binary, "store")] == ["failed", "failed", "succeeded"]
    await require_well(binary)


def allow(root: str, mode: int) -> None:
    """Set what may be done in a folder and those in it."""
    for folder, _, _ in list(os.walk(root)):
        Path(folder).chmod(mode)


async def test_a_storage_that_may_only_be_read_says_so_and_is_read(
    connect: Connect, fs_config: bdr.BinaryStorageConfig
) -> None:
    binary = await connect()
    key = (await binary.store_data(b"before")).file_key
    allow(fs_config.root, 0o555)
    # Nobody may open a connection either: there is one for each of the things that a failed store does.
    async with binary.engine.database.reading(), binary.engine.database.reading():
        await rows(binary, "SELECT 1")
    with as_nobody():
        for store in (binary.store_data(b"hello"), binary.store_stream(chunks(b"x" * 3_000_000, b"y" * 3_000_000))):
            with pytest.raises(bdr.PermissionDenied, match=r"could not write .*check the credentials"):
                await store
    assert await binary.get_data(key) == b"before"
    allow(fs_config.root, 0o755)
    await require_well(binary)


async def test_a_storage_that_is_gone_says_so_and_is_used_when_it_is_back(
    connect: Connect, fs_config: bdr.BinaryStorageConfig
) -> None:
    binary = await connect()
    key = (await binary.store_data(b"before")).file_key
    for empty in (False, True):
        away = f"{fs_config.root}-away"
        shutil.move(fs_config.root, away)
        if empty:
            os.mkdir(fs_config.root)  # noqa: PTH102 - in an async test; pathlib is refused there
        calls = (
            binary.store_data(b"hello"),
            binary.store_stream(chunks(b"x" * 3_000_000, b"y" * 3_000_000)),
            binary.get_range(key, 0, 3),
            binary.data_exists(key),
        )
        for call in calls:
            with pytest.raises(bdr.StorageUnavailable, match=r"mounted|emptied"):
                await call
        report = await binary.reap()
        assert list(report.unreachable) == ["main"]
        shutil.rmtree(fs_config.root, ignore_errors=True)
        shutil.move(away, fs_config.root)
        assert await binary.get_data(key) == b"before"
    await require_well(binary)


async def test_a_storage_that_is_too_slow_is_unavailable_in_time_and_well_when_it_is_fast_again(
    connect: Connect, proxy: MakeProxy, redis_server: RedisServer, make_storage_config: MakeStorageConfig
) -> None:
    between = await proxy(redis_server.host, redis_server.port)
    endpoint = {"endpoint": f"redis://{between.host}:{between.port}"}
    place = make_storage_config("redis", config=endpoint, timeout="300ms", io_timeout="300ms")
    binary = await connect(storage=place)
    key = (await binary.store_data(b"before")).file_key
    between.pause()
    calls = (
        binary.store_data(b"hello"),
        binary.store_stream(chunks(b"x" * 100_000)),
        binary.get_range(key, 0, 3),
        binary.data_exists(key),
    )
    for call in calls:
        with pytest.raises(bdr.StorageUnavailable, match="timeout"):
            await call
    between.resume()
    assert await binary.get_data(key) == b"before"
    await require_well(binary)


async def test_a_slow_storage_is_only_slow(connect_redis: ConnectRedis) -> None:
    binary, between = await connect_redis()
    between.delay(0.02)
    key = (await binary.store_data(b"hello")).file_key
    assert await binary.get_data(key) == b"hello"
    between.delay(0)
    await require_well(binary)


async def test_a_database_that_went_down_is_unavailable_and_used_again_when_it_is_back(
    connect_through: ConnectThrough,
) -> None:
    short = timedelta(seconds=2)
    binary, between = await connect_through(
        access=NEVER, database=bdr.DatabaseConfig(connect_timeout=short, pool_timeout=short)
    )
    key = (await binary.store_data(b"before")).file_key
    between.stop()
    calls = (
        binary.store_data(b"hello"),
        binary.store_stream(chunks(b"x" * 100_000)),
        binary.get_data(key),
        binary.get_stats(),
        binary.register_reference(key),
        binary.reap(),
    )
    for call in calls:
        with pytest.raises(bdr.CatalogUnavailable, match=r"cannot be reached|was lost") as raised:
            await call
        assert isinstance(raised.value, ConnectionError)
    await between.start()
    assert await binary.get_data(key) == b"before"
    await require_well(binary)


async def test_a_store_through_a_crash_of_the_database_is_all_or_nothing(
    private_postgres: PostgresServer, connect: Connect
) -> None:
    url = private_postgres.url(await private_postgres.create_database())
    binary = await connect(database_url=url, migrate_on_start=True)
    key = (await binary.store_data(b"before")).file_key
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    await asyncio.to_thread(private_postgres.restart, "immediate")
    source.go_on.set()
    (ended,) = await asyncio.gather(storing, return_exceptions=True)
    if isinstance(ended, BaseException):
        assert isinstance(ended, bdr.CatalogUnavailable | bdr.OutcomeUnknown)
    else:
        assert await binary.get_data(ended.file_key) == b"x" * 10_000 + b"y" * 10_000
    assert await binary.get_data(key) == b"before"
    await require_well(binary)
