"""The cache: what it keeps, what it never keeps, and how many reads it saves."""

import asyncio
import gc
import uuid
from datetime import timedelta
from typing import Any, Self

import pytest

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.manager.cache import OVERHEAD, ByteCache, Kept
from tests.fixtures.engines import Connect
from tests.fixtures.storages import MakeStorageConfig, RedisServer
from tests.lifecycle.support import change
from tests.lifecycle.test_shared_blob import share
from tests.manager.conftest import ConnectRedis
from tests.manager.support import NEVER, counting, object_file, records, redis_key, until_gone
from tests.storage.helpers import redis_command, until

MiB = 1024 * 1024


class Counted(bytes):
    """Bytes that tell how many of them are alive."""

    alive = 0

    def __new__(cls, data: bytes) -> Self:
        cls.alive += len(data)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).alive -= len(self)


async def never() -> bytes:
    raise AssertionError("nothing should be read")


async def test_the_limits_are_those_of_the_seed(binary: BinaryDataLifecycleManager) -> None:
    config = binary.engine.settings.cache
    assert (config.capacity, config.max_entry) == (100 * MiB, 10 * MiB)


async def test_an_entry_of_the_limit_is_not_kept_and_one_below_it_is() -> None:
    cache = ByteCache(1000, 100)
    for size, kept in ((100, False), (99, True)):
        blob_id = uuid.uuid4()
        data = b"x" * size

        async def load(data: bytes = data) -> bytes:
            return data

        assert await cache.get(blob_id, size, load) == data
        if kept:
            assert await cache.get(blob_id, size, never) == data
        else:
            with pytest.raises(AssertionError):
                await cache.get(blob_id, size, never)


async def test_a_burst_of_entries_never_holds_more_than_the_capacity() -> None:
    cache = ByteCache(100 * 1000, 10_000)
    Counted.alive = 0
    most = 0
    for _ in range(500):
        cache.put(uuid.uuid4(), Counted(bytes(9_999)))
        most = max(most, Counted.alive)
        assert cache.weight <= 100_000
    del cache
    gc.collect()
    assert 0 < most <= 100_000
    assert Counted.alive == 0


async def test_tiny_entries_weigh_what_they_cost() -> None:
    cache = ByteCache(100_000, 10_000)
    for _ in range(1000):
        cache.put(uuid.uuid4(), b"")
    assert 0 < cache.weight <= 100_000
    assert len(cache._kept) < 500


async def test_what_is_used_often_survives_a_scan() -> None:
    cache = ByteCache(50 * 1000, 10_000)
    often = [uuid.uuid4() for _ in range(20)]

    async def load() -> bytes:
        return bytes(1000)

    for step in range(5_000):
        await cache.get(often[step % 20], 1000, load)
        await cache.get(uuid.uuid4(), 1000, load)
    for blob_id in often:
        assert await cache.get(blob_id, 1000, never) == bytes(1000)


def test_what_nobody_asks_for_any_more_goes_however_often_it_was_used() -> None:
    kept: Kept[int] = Kept(50 * (1000 + OVERHEAD))
    popular, later = ([uuid.uuid4() for _ in range(50)] for _ in range(2))
    for step in range(50_000):
        read(kept, popular[step % 50], 1000)
    passes = 0
    while any(blob_id in kept._entries for blob_id in popular):
        passes += 1
        assert passes < 4
        for blob_id in later:
            read(kept, blob_id, 1000)
    assert all(kept.get(blob_id) for blob_id in later)


def test_a_large_file_pushes_out_small_ones_only_if_it_is_used_more() -> None:
    kept: Kept[int] = Kept(1000 * (1000 + OVERHEAD))
    small, large = [uuid.uuid4() for _ in range(1000)], uuid.uuid4()
    for blob_id in small:
        kept.put(blob_id, 1, 1000)
    read(kept, large, MiB)
    assert large not in kept._entries
    assert len(kept) == 1000
    other: Kept[int] = Kept(2 * MiB)
    for blob_id in (large, *(uuid.uuid4() for _ in range(2))):
        for _ in range(3 if blob_id == large else 1):
            read(other, blob_id, MiB - OVERHEAD if blob_id == large else MiB // 2)
    assert large in other._entries


def test_files_that_are_read_soon_after_each_other_are_kept_although_others_were_used_more_before() -> None:
    """As in workflows: a file is read a few times soon, and never again."""
    kept: Kept[int] = Kept(150 * (1000 + OVERHEAD))
    before: list[uuid.UUID] = []
    hits = 0
    for _ in range(2000):
        before = [*before[-40:], uuid.uuid4()]
        hits += sum(read(kept, blob_id, 1000) for blob_id in (before[-1], before[len(before) // 2], before[0]))
    assert hits > 0.9 * 2 * 2000


def test_one_entry_is_let_go_without_a_look_at_all_those_that_were_used_again() -> None:
    kept: Kept[int] = Kept(10_000 * (1000 + OVERHEAD))
    every = [uuid.uuid4() for _ in range(10_000)]
    for blob_id in every * 2:
        read(kept, blob_id, 1000)
    looked_at = Looked(kept._entries)
    kept._entries = looked_at
    kept.put(uuid.uuid4(), 1, 1000)
    assert len(kept) == 10_000
    assert looked_at.times <= 64


class Looked(dict[uuid.UUID, Any]):
    """A dictionary that counts how often something was looked up."""

    times = 0

    def __getitem__(self, key: uuid.UUID) -> Any:
        self.times += 1
        return super().__getitem__(key)


def read(kept: Kept[int], blob_id: uuid.UUID, size: int) -> bool:
    """Whether it was kept; from now on it is, if it is worth it."""
    found = kept.get(blob_id) is not None
    if not found:
        kept.put(blob_id, 1, size)
    return found


async def test_a_capacity_of_zero_turns_it_off(connect: Connect) -> None:
    binary = await connect(cache=bdr.CacheConfig(capacity=0))
    for data in (b"", b"x"):
        key = (await binary.store_data(data)).file_key
        assert [await binary.get_data(key) for _ in range(2)] == [data, data]
    assert len(await records(binary, "retrieve")) == 4


@pytest.mark.parametrize(("kind", "reads"), [("fs", 1), ("redis", 1), ("memory", 3)])
async def test_a_file_is_read_once_unless_it_is_in_memory_anyway(
    connect: Connect, make_storage_config: MakeStorageConfig, kind: str, reads: int
) -> None:
    binary = await connect(storage=make_storage_config(kind))
    key = (await binary.store_data(b"hello")).file_key
    assert [await binary.get_data(key) for _ in range(3)] == [b"hello"] * 3
    assert await records(binary, "retrieve") == [("succeeded", 5, None)] * reads
    assert (binary.retrievals.cache.weight > 0) == (kind != "memory")


async def test_a_large_file_is_read_every_time(binary: BinaryDataLifecycleManager) -> None:
    data = b"0123456789abcdef" * (10 * MiB // 16)
    key = (await binary.store_data(data)).file_key
    assert await binary.get_data(key) == data
    assert await binary.get_data(key) == data
    assert await records(binary, "retrieve") == [("succeeded", 10 * MiB, None)] * 2
    assert binary.retrievals.cache.weight == 0


async def test_concurrent_misses_of_one_key_make_one_read_and_one_record(connect_redis: ConnectRedis) -> None:
    binary, proxy = await connect_redis(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    reads = counting(proxy, b"$3\r\nGET\r\n")
    proxy.pause()
    calls = [asyncio.create_task(binary.get_data(key)) for _ in range(20)]
    await until_waiting_for_one_read(binary, len(calls))
    proxy.resume()
    assert await asyncio.gather(*calls) == [b"hello"] * 20
    assert reads() == 1
    assert await records(binary, "retrieve") == [("succeeded", 5, None)]


async def until_waiting_for_one_read(binary: BinaryDataLifecycleManager, callers: int) -> None:
    async def reached() -> bool:
        return len(binary.operations._running) == callers and len(binary.retrievals.cache._loading) == 1

    await until(reached)


async def test_a_cancelled_caller_does_not_take_the_read_from_the_others(connect_redis: ConnectRedis) -> None:
    binary, proxy = await connect_redis(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    reads = counting(proxy, b"$3\r\nGET\r\n")
    proxy.pause()
    calls = [asyncio.create_task(binary.get_data(key)) for _ in range(3)]
    await until_waiting_for_one_read(binary, len(calls))
    calls[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    proxy.resume()
    assert await asyncio.gather(*calls[1:]) == [b"hello"] * 2
    assert reads() == 1


async def test_an_error_reaches_all_who_wait_and_is_not_kept(
    connect_redis: ConnectRedis, redis_server: RedisServer
) -> None:
    binary, proxy = await connect_redis(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    name = await redis_key(binary, key)
    proxy.pause()
    calls = [asyncio.create_task(binary.get_data(key)) for _ in range(3)]
    await until_waiting_for_one_read(binary, len(calls))
    await redis_command(redis_server, f"DEL {name}")
    proxy.resume()
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(failure) for failure in failures] == [bdr.Lost] * 3
    await redis_command(redis_server, f"SET {name} hello")
    assert await binary.get_data(key) == b"hello"


@pytest.mark.parametrize("damage", ["lost", "corrupt", "unreachable"])
async def test_each_caller_of_one_failed_read_has_an_error_of_its_own_that_names_its_own_key(
    connect_redis: ConnectRedis, redis_server: RedisServer, damage: str
) -> None:
    binary, proxy = await connect_redis(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    second = await binary.engine.database.write(lambda own: share(own, key))
    name = await redis_key(binary, key)
    keys = [key, second, second]
    proxy.pause()
    calls = [asyncio.create_task(binary.get_data(one)) for one in keys]
    await until_waiting_for_one_read(binary, len(calls))
    if damage == "unreachable":
        proxy.stop()
    else:
        await redis_command(redis_server, f"DEL {name}" if damage == "lost" else f"SET {name} HELLO")
    proxy.resume()
    failures = await asyncio.gather(*calls, return_exceptions=True)
    expected = {"lost": bdr.Lost, "corrupt": bdr.Corrupt, "unreachable": bdr.StorageUnavailable}[damage]
    assert [type(failure) for failure in failures] == [expected] * 3
    assert len(set(map(id, failures))) == 3
    if damage != "unreachable":
        assert [one in str(failure) for one, failure in zip(keys, failures, strict=True)] == [True] * 3


async def test_who_waited_for_a_read_by_a_key_that_was_deleted_meanwhile_reads_by_its_own(
    connect_redis: ConnectRedis, redis_server: RedisServer
) -> None:
    binary, proxy = await connect_redis(access=NEVER, cache=bdr.CacheConfig(locations=0))
    key = (await binary.store_data(b"hello")).file_key
    second = await binary.engine.database.write(lambda own: share(own, key))
    name = await redis_key(binary, key)
    proxy.pause()
    calls = []
    # One after the other: it is the first that reads.
    for one in (key, second):
        calls.append(asyncio.create_task(binary.get_data(one)))
        await until_waiting_for_one_read(binary, len(calls))
    # Deleted and moved at once: the one key means nothing any more, and the other a new place.
    await redis_command(redis_server, f"RENAME {name} {name}x")
    await change(binary, "DELETE FROM bdr.binary_data_reference WHERE file_key = :key", key=key)
    await change(binary, "UPDATE bdr.blob SET object_path = object_path || 'x'")
    proxy.resume()
    first, other = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, bdr.Gone)
    assert other == b"hello"


async def test_reads_that_nobody_waits_for_any_more_end_with_the_connection(
    connect_redis: ConnectRedis, recwarn: pytest.WarningsRecorder
) -> None:
    binary, proxy = await connect_redis(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    proxy.pause()
    left, waiting = (asyncio.create_task(binary.get_data(key)) for _ in range(2))
    await until_waiting_for_one_read(binary, 2)
    left.cancel()
    await binary.retrievals.cache.close()
    with pytest.raises(bdr.InstanceClosed, match="closed while the file was being read"):
        await waiting
    assert binary.retrievals.cache._loading == {}
    proxy.resume()
    assert await binary.get_data(key) == b"hello"
    assert not recwarn.list


@pytest.mark.parametrize("by", ["itself", "another"])
async def test_nothing_is_served_for_a_key_that_was_deleted(connect: Connect, by: str) -> None:
    binary = await connect(access=NEVER)
    other = binary if by == "itself" else await connect()
    key = (await binary.store_data(b"hello")).file_key
    assert await binary.get_data(key) == b"hello"
    await other.delete_data(key)
    await until_gone(binary, key)
    with pytest.raises(bdr.FileNotFound, match="was deleted"):
        await binary.get_data(key)


async def test_nothing_is_served_for_a_key_that_was_reaped(connect: Connect) -> None:
    binary = await connect(lifecycle=bdr.LifecycleCleanupConfig(max_retention=timedelta(0)))
    key = (await binary.store_data(b"hello")).file_key
    assert await binary.get_data(key) == b"hello"
    await (await connect()).reap()
    await until_gone(binary, key)


async def test_corrupt_bytes_never_enter(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    key = (await binary.store_data(b"hello")).file_key
    file = await object_file(binary, key)
    file.write_bytes(b"HELLO")
    with pytest.raises(bdr.Corrupt):
        await binary.get_data(key)
    assert binary.retrievals.cache.weight == 0
    file.write_bytes(b"hello")
    assert await binary.get_data(key) == b"hello"
