"""When a reference ends by itself: at once, after its retention, or never, as the engine that stored it says."""

from datetime import timedelta

import pytest

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig, LifecycleCleanupConfig, ReaperConfig
from tests.fixtures.engines import AT_ONCE, Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig
from tests.guarantees import objects_in, violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import blob_states, change, count_of, cut_after, make_due, reference_row, rows, unmounted

EAGER = LifecycleCleanupConfig(zero_ref_retention=AT_ONCE)
FOR_EVER = LifecycleCleanupConfig(zero_ref_retention=None, max_retention=None)
LONG_AGO = "now() - interval '900 years'"


async def assert_nothing_left(binary: BinaryDataLifecycleManager) -> None:
    assert await blob_states(binary) == []
    assert await rows(binary, "SELECT file_key FROM bdr.binary_data_reference") == []
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_a_retention_of_zero_cleans_up_with_the_last_release(connect: Connect) -> None:
    binary = await connect(lifecycle=EAGER)
    key = (await binary.store_data(b"x")).file_key
    assert await binary.register_reference(key) == 2
    assert await binary.release_reference(key) == 1
    assert await binary.get_data(key) == b"x"
    assert await binary.release_reference(key) == 0
    await assert_nothing_left(binary)
    assert await rows(binary, "SELECT operation_type FROM bdr.operation WHERE operation_type = 'cleanup'")


async def test_a_retention_of_zero_is_that_of_the_storing_engine(connect: Connect) -> None:
    storing, other = await connect(lifecycle=EAGER), await connect()
    key = (await storing.store_data(b"x")).file_key
    assert await other.release_reference(key) == 0
    await assert_nothing_left(storing)
    key = (await other.store_data(b"x")).file_key
    assert await storing.release_reference(key) == 0
    assert await storing.get_data(key) == b"x"


async def test_a_pinned_reference_survives_a_retention_of_zero(connect: Connect) -> None:
    binary = await connect(lifecycle=EAGER)
    key = (await binary.store_data(b"x")).file_key
    await change(binary, "UPDATE bdr.binary_data_reference SET pinned = true")
    assert await binary.release_reference(key) == 0
    assert (await binary.reap()).references == 0
    assert await binary.get_data(key) == b"x"


async def test_a_release_counts_though_the_storage_is_not_mounted_when_it_cleans_up(
    connect: Connect, fs_config: BinaryStorageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect(lifecycle=EAGER)
    key = (await binary.store_data(b"x")).file_key
    with unmounted(fs_config):
        assert await binary.release_reference(key) == 0
        assert "left to the reaper" in caplog.text
        assert (await count_of(binary, key), await blob_states(binary)) == (None, ["deleting"])
        assert (await binary.reap()).unreachable
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    await assert_nothing_left(binary)


async def test_a_release_counts_though_the_storage_is_down_when_it_cleans_up(
    connect: Connect, make_storage_config: MakeStorageConfig, proxy: MakeProxy
) -> None:
    config = make_storage_config("redis", timeout="1s", io_timeout="1s")
    through = await proxy("127.0.0.1", int(config.config["endpoint"].rpartition(":")[2]))
    moved = config.config | {"endpoint": f"redis://{through.host}:{through.port}"}
    binary = await connect(storage=config.model_copy(update={"config": moved}), lifecycle=EAGER)
    key = (await binary.store_data(b"x")).file_key
    through.stop()
    assert await binary.release_reference(key) == 0
    assert (await count_of(binary, key), await blob_states(binary)) == (None, ["deleting"])
    await through.start()
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    await assert_nothing_left(binary)


async def test_a_release_counts_though_the_database_is_lost_when_it_cleans_up(connect_through: ConnectThrough) -> None:
    binary, proxy = await connect_through(lifecycle=EAGER)
    key = (await binary.store_data(b"x")).file_key
    cut_after(proxy, b"DELETE FROM bdr.binary_data_reference")
    assert await binary.release_reference(key) == 0
    assert (await count_of(binary, key), await blob_states(binary)) == (0, ["live"])
    assert (await binary.reap()).references == 1
    await assert_nothing_left(binary)


async def test_a_retention_of_none_is_for_ever(connect: Connect) -> None:
    binary, eager = await connect(lifecycle=FOR_EVER), await connect(lifecycle=EAGER)
    key = (await binary.store_data(b"x")).file_key
    assert await eager.release_reference(key) == 0
    await change(binary, f"UPDATE bdr.binary_data_reference SET created_at = {LONG_AGO}, last_access_at = {LONG_AGO}")
    row = await reference_row(binary, key)
    assert row is not None
    assert row.expires_at is None
    assert (await eager.reap()).references == 0
    assert await binary.get_data(key) == b"x"


async def test_each_reference_keeps_the_retention_of_the_engine_that_stored_it(connect: Connect) -> None:
    lives = {timedelta(hours=1): timedelta(days=2), timedelta(days=3): timedelta(days=4)}
    engines = [
        await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=zero, max_retention=longest))
        for zero, longest in lives.items()
    ]
    keys = [(await engine.store_data(b"x")).file_key for engine in engines]
    for key in keys:
        # Released by the other engine, whose own settings are different.
        assert await engines[keys.index(key) - 1].release_reference(key) == 0
    found = [await reference_row(engines[0], key) for key in keys]
    assert [(row.zero_ref_retention, row.max_retention) for row in found if row] == list(lives.items())
    assert all(row and row.expires_at == row.last_access_at + row.zero_ref_retention for row in found)
    await change(engines[0], "UPDATE bdr.binary_data_reference SET last_access_at = now() - interval '2 hours'")
    assert [(await engine.reap()).references for engine in engines] == [1, 0]
    assert [await count_of(engines[0], key) for key in keys] == [None, 0]


async def test_what_has_expired_can_be_registered_and_read_until_a_reaper_claims_it(
    binary: BinaryDataLifecycleManager,
) -> None:
    key = (await binary.store_data(b"x")).file_key
    await binary.release_reference(key)
    await change(binary, f"UPDATE bdr.binary_data_reference SET last_access_at = {LONG_AGO}")
    assert await rows(binary, "SELECT expires_at < now() FROM bdr.binary_data_reference") == [(True,)]
    assert await binary.get_data(key) == b"x"
    assert await binary.register_reference(key) == 1
    assert (await binary.reap()).references == 0
    assert await binary.release_reference(key) == 0
    await change(binary, f"UPDATE bdr.binary_data_reference SET last_access_at = {LONG_AGO}")
    assert (await binary.reap()).references == 1
    await assert_nothing_left(binary)


async def test_a_reference_that_is_held_ends_with_its_longest_life(connect: Connect) -> None:
    binary = await connect(reaper=ReaperConfig(write_grace=AT_ONCE))
    key = (await binary.store_data(b"x")).file_key
    row = await reference_row(binary, key)
    assert row is not None
    assert row.expires_at == row.created_at + row.max_retention
    await change(binary, f"UPDATE bdr.binary_data_reference SET created_at = {LONG_AGO}")
    assert (await binary.reap()).references == 1
    await assert_nothing_left(binary)
    assert await violations(binary.engine.database, binary.engine.storages) == []
