"""Storages that go away, before and while a reaper deletes: nothing is used up, others go on, and it ends well."""

import asyncio
import errno

import pytest

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig
from bdr.catalog import expiry
from bdr.errors import StorageUnavailable
from bdr.reaper import ReapReport
from bdr.storage import OpenDalStorage
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy, TcpProxy
from tests.fixtures.storages import MakeStorageConfig
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import make_due
from tests.reaper.support import EAGER, blobs, expired, keys_left, path_of

Through = tuple[BinaryStorageConfig, TcpProxy]


async def behind_proxy(make_storage_config: MakeStorageConfig, proxy: MakeProxy, kind: str) -> Through:
    """A storage on a server, and what stands between."""
    # A Redis that is down is only noticed by a time-out; the first write of an S3 server takes its time.
    timeouts = {"timeout": "2s", "io_timeout": "2s"} if kind == "redis" else {}
    config = make_storage_config(kind, **timeouts)
    scheme, _, address = config.config["endpoint"].rpartition("//")
    between = await proxy("127.0.0.1", int(address.rpartition(":")[2]))
    endpoint = f"{scheme}//{between.host}:{between.port}"
    return config.model_copy(update={"config": config.config | {"endpoint": endpoint}}), between


@pytest.fixture
async def redis(make_storage_config: MakeStorageConfig, proxy: MakeProxy) -> Through:
    return await behind_proxy(make_storage_config, proxy, "redis")


def after_deletes(between: TcpProxy, number: int, then: str) -> None:
    """Have the proxy `stop` or `cut` once so many deletes have passed to the server."""
    seen = 0

    def look(chunk: bytes) -> None:
        nonlocal seen
        seen += chunk.count(b"DEL")
        if seen >= number:
            between.on_client_data(None)
            getattr(between, then)()

    between.on_client_data(look)


async def finished(binary: BinaryDataLifecycleManager) -> bool:
    gone = await keys_left(binary) == set() and await blobs(binary) == []
    return gone and await objects_in(binary.engine.storage("main")) == set()


@pytest.mark.parametrize("kind", ["redis", "s3"])
async def test_a_storage_that_is_away_is_left_out_and_the_others_are_not(
    connect: Connect,
    make_storage_config: MakeStorageConfig,
    proxy: MakeProxy,
    kind: str,
    fs_config: BinaryStorageConfig,
) -> None:
    config, between = await behind_proxy(make_storage_config, proxy, kind)
    binary = await connect(storages={"main": fs_config, "remote": config}, default_storage="remote", reaper=EAGER)
    local = await connect(storages={"main": fs_config}, reaper=EAGER)
    away = await expired(binary, 3)
    await expired(local, 2)
    between.stop()
    report = await binary.reap()
    assert (report.references, report.blobs, report.failed) == (2, 2, 0)
    assert report.unreachable.keys() == {"remote"}
    assert await keys_left(binary) == set(away)
    assert [state for state, *_ in await blobs(binary)] == ["live"] * 3
    await between.start()
    report = await binary.reap()
    assert (report.references, report.blobs, report.unreachable) == (3, 3, {})
    assert await violations(binary.engine.database, binary.engine.storages) == []
    assert await blobs(binary) == []


async def test_a_storage_that_goes_away_in_the_middle_uses_up_no_attempts(connect: Connect, redis: Through) -> None:
    config, between = redis
    binary = await connect(storage=config, reaper=EAGER.model_copy(update={"concurrency": 2}))
    await expired(binary, 20)
    after_deletes(between, 5, "stop")
    report = await binary.reap()
    assert (report.references, report.blobs, report.failed, report.quarantined) == (20, 0, 0, 0)
    assert report.unreachable.keys() == {"main"}
    left = await blobs(binary)
    assert [(state, attempts) for state, attempts, *_ in left] == [("deleting", 0)] * 20
    assert all(error for _, _, error, _ in left)
    await between.start()
    await make_due(binary)
    assert (await binary.reap()).blobs == 20
    assert await finished(binary)


async def test_a_cut_connection_is_tried_again_at_once(connect: Connect, redis: Through) -> None:
    config, between = redis
    binary = await connect(storage=config, reaper=EAGER)
    await expired(binary, 10)
    after_deletes(between, 1, "cut")
    report = await binary.reap()
    assert (report.references, report.blobs, report.failed) == (10, 10, 0)
    assert await finished(binary)


async def test_an_object_that_the_storage_never_answers_for_is_the_objects_own_fault(
    connect: Connect, redis: Through
) -> None:
    config, between = redis
    binary = await connect(storage=config, reaper=EAGER.model_copy(update={"max_attempts": 2, "concurrency": 1}))
    bad, *_ = await expired(binary, 5)
    path = (await path_of(binary, bad)).encode()
    # Whoever names this object loses the connection.
    between.on_client_data(lambda chunk: between.cut() if path in chunk else None)
    reports: list[ReapReport] = []
    while not reports or not reports[-1].quarantined:
        await make_due(binary)
        reports.append(await binary.reap())
    assert sum(report.failed for report in reports) == 1
    await make_due(binary)
    reports.append(await binary.reap())
    assert sum(report.blobs for report in reports) == 4
    assert [row[:2] for row in await blobs(binary)] == [("quarantined", 2)]


async def test_references_go_on_time_although_an_object_is_never_answered_for(connect: Connect, redis: Through) -> None:
    config, between = redis
    binary = await connect(storage=config, reaper=EAGER.model_copy(update={"batch_size": 2}))
    (bad,) = await expired(binary)
    path = (await path_of(binary, bad)).encode()
    between.on_client_data(lambda chunk: between.cut() if path in chunk else None)
    assert (await binary.reap()).failed == 1
    await make_due(binary)
    await expired(binary, 5)
    # It is due before them, and ends the deletes of this pass.
    report = await binary.reap()
    assert (report.references, report.blobs, report.failed) == (5, 0, 1)
    assert report.unreachable.keys() == {"main"}
    assert await keys_left(binary) == set()
    assert sorted(attempts for _, attempts, *_ in await blobs(binary)) == [0] * 5 + [2]
    between.on_client_data(None)
    await make_due(binary)
    assert (await binary.reap()).blobs == 6
    assert await finished(binary)


async def test_folders_that_are_not_synced_in_time_cost_one_object_one_attempt(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = await connect(reaper=EAGER.model_copy(update={"batch_size": 4}))
    await expired(binary, 8)
    await binary.engine.database.transaction(lambda own: expiry.claim_expired(own, "main", 100))
    storage = binary.engine.storage("main")
    assert isinstance(storage, OpenDalStorage)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ETIMEDOUT, f"no answer for {descriptor}")

    monkeypatch.setattr(storage._folders, "_fsync", fsync)
    report = await binary.reap()
    assert (report.blobs, report.failed) == (0, 1)
    assert report.unreachable.keys() == {"main"}
    assert sorted(attempts for _, attempts, *_ in await blobs(binary)) == [0] * 7 + [1]
    assert len(await objects_in(storage)) == 4
    monkeypatch.undo()
    await make_due(binary)
    assert (await binary.reap()).blobs == 8
    assert await finished(binary)


async def test_a_storage_that_hangs_ends_its_part_of_the_pass_in_time(connect: Connect, redis: Through) -> None:
    config, between = redis
    binary = await connect(storage=config, reaper=EAGER)
    await expired(binary, 20)
    after_deletes(between, 5, "pause")
    async with asyncio.timeout(30):
        report = await binary.reap()
    assert (report.blobs, report.failed) == (0, 0)
    assert report.unreachable.keys() == {"main"}
    between.resume()
    await make_due(binary)
    assert (await binary.reap()).blobs == 20
    assert await finished(binary)


async def test_a_known_storage_that_is_down_at_the_start_is_a_warning_and_works_when_it_is_back(
    connect: Connect, redis: Through, caplog: pytest.LogCaptureFixture
) -> None:
    config, between = redis
    await expired(await connect(storage=config), 2)
    between.stop()
    binary = await connect(storage=config)
    assert "cannot be used until it is back" in caplog.text
    with pytest.raises(StorageUnavailable):
        await binary.store_data(b"data")
    assert (await binary.reap()).unreachable.keys() == {"main"}
    await between.start()
    assert await binary.get_data((await binary.store_data(b"data")).file_key) == b"data"
    report = await binary.reap()
    assert (report.references, report.blobs, report.unreachable) == (2, 2, {})
