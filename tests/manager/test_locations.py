"""Remembered places: a second read asks nothing, and what is gone is not served for longer than is said."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.catalog import listening
from bdr.catalog.hints import CHANNEL, NOTIFY, blobs_in, payloads
from bdr.catalog.reference import Location
from bdr.manager import locations
from bdr.manager.locations import Locations
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import TcpProxy
from tests.lifecycle.conftest import ConnectThrough, connect_through
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import change, rows, set_count
from tests.manager.support import (
    NEVER,
    fetch,
    object_file,
    records,
    require_nothing_left,
    statements_of,
    until_gone,
)
from tests.storage.helpers import until

__all__ = ["connect_through"]

UNCACHED = bdr.CacheConfig(capacity=0)
LISTENING = "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_notify(%' AND pid <> pg_backend_pid()"


async def trusting(binary: BinaryDataLifecycleManager) -> None:
    """Return when the engine's listener has been heard."""

    async def heard() -> bool:
        return binary.engine.locations.mark() is not None

    await until(heard)


class Statements:
    """What an engine asks the catalog from now on."""

    def __init__(self, binary: BinaryDataLifecycleManager) -> None:
        self._sent = statements_of(binary, "bdr.")

    async def number(self) -> int:
        """How many since this was asked last."""
        # The driver tells of a statement in the loop's next turn.
        await asyncio.sleep(0)
        found = len(self._sent)
        self._sent.clear()
        return found


async def remembering(connect: Connect, **settings: Any) -> tuple[BinaryDataLifecycleManager, str]:
    """An engine that has read a file, and its key."""
    binary = await connect(**({"access": NEVER} | settings))
    await trusting(binary)
    key = (await binary.store_data(b"hello")).file_key
    assert await binary.get_data(key) == b"hello"
    return binary, key


@pytest.mark.parametrize("cache", [bdr.CacheConfig(), UNCACHED])
async def test_the_second_read_asks_nothing(connect: Connect, cache: bdr.CacheConfig) -> None:
    other = await connect()
    key = (await other.store_data(b"hello")).file_key
    binary = await connect(access=NEVER, cache=cache)
    await trusting(binary)
    sent = Statements(binary)
    assert await binary.get_data(key) == b"hello"
    assert await sent.number() > 0
    assert await binary.get_data(key) == b"hello"
    assert await binary.get_range(key, 1, 3) == b"ell"
    assert await sent.number() == 0


async def test_what_was_stored_is_read_without_asking(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    await trusting(binary)
    key = (await binary.store_data(b"hello")).file_key
    sent = Statements(binary)
    assert await binary.get_data(key) == b"hello"
    assert await sent.number() == 0


async def test_what_a_callers_transaction_stored_is_not_remembered(connect: Connect, database_url: str) -> None:
    binary = await connect(access=NEVER)
    await trusting(binary)
    caller = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with caller.connect() as connection:
        await connection.begin()
        key = (await binary.store_data(b"hello", connection=connection)).file_key
        await connection.rollback()
    await caller.dispose()
    with pytest.raises(bdr.FileNotFound):
        await binary.get_data(key)


async def test_a_read_from_memory_that_is_asked_for_its_progress_still_shows_it(connect: Connect) -> None:
    binary, key = await remembering(connect)
    seen: list[bdr.OperationProgress] = []
    wanted = uuid.uuid4()
    assert await binary.get_data(key, operation_id=wanted, on_progress=seen.append) == b"hello"
    assert [(one.operation_id, one.completion_percentage) for one in seen] == [(wanted, 100.0)]
    assert len(await records(binary, "retrieve")) == 1


async def test_zero_remembers_nothing_and_listens_to_nobody(connect: Connect, database_url: str) -> None:
    binary = await connect(access=NEVER, cache=bdr.CacheConfig(locations=0))
    key = (await binary.store_data(b"hello")).file_key
    sent = Statements(binary)
    for _ in range(2):
        assert await binary.get_data(key) == b"hello"
    assert await sent.number() == 2
    assert await fetch(database_url, LISTENING) == []
    # Others hear of what it deletes all the same.
    other = await connect(access=NEVER)
    await trusting(other)
    assert await other.get_data(key) == b"hello"
    await binary.delete_data(key)
    await until_gone(other, key)


Deletes = Callable[[BinaryDataLifecycleManager, str], Awaitable[object]]


async def _cleanup(binary: BinaryDataLifecycleManager, key: str) -> None:
    await set_count(binary, key, 0)
    assert await binary.cleanup_data(key)


async def _release(binary: BinaryDataLifecycleManager, key: str) -> None:
    await change(binary, "UPDATE bdr.binary_data_reference SET zero_ref_retention = '0'")
    assert await binary.release_reference(key) == 0


async def _reap(binary: BinaryDataLifecycleManager, key: str) -> None:
    await change(binary, "UPDATE bdr.binary_data_reference SET max_retention = '0'")
    assert (await binary.reap()).references == 1


DELETES: dict[str, Deletes] = {
    "delete": lambda binary, key: binary.delete_data(key),
    "cleanup": _cleanup,
    "release": _release,
    "reap": _reap,
}


@pytest.mark.parametrize("how", DELETES)
async def test_its_own_delete_is_seen_at_once(connect: Connect, how: str) -> None:
    binary, key = await remembering(connect)
    await DELETES[how](binary, key)
    with pytest.raises(bdr.FileNotFound):
        await binary.get_data(key)


@pytest.mark.parametrize("how", DELETES)
async def test_what_another_engine_deletes_is_gone_long_before_an_entry_is_too_old(connect: Connect, how: str) -> None:
    binary, key = await remembering(connect)
    other = await connect()
    began = time.monotonic()
    await DELETES[how](other, key)
    await until_gone(binary, key)
    assert time.monotonic() - began < listening.BELIEVED < locations.LONGEST


async def test_a_delete_whose_caller_was_cancelled_is_told_of_when_it_is_committed(
    connect: Connect, database_url: str
) -> None:
    binary, key = await remembering(connect)
    other = await connect(access=NEVER)
    await trusting(other)
    async with closed_gate(database_url) as gate:
        deleting = asyncio.create_task(binary.delete_data(key))
        await gate.reached()
        deleting.cancel()
        with pytest.raises(bdr.OutcomeUnknown):
            await deleting
        # Not committed yet: whoever asks now may remember it.
        assert await binary.get_data(key) == b"hello"
        assert await other.get_data(key) == b"hello"
        await gate.open()
    for engine in (binary, other):
        await until_gone(engine, key)


async def test_of_two_reapers_each_tells_what_it_has_claimed(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    await trusting(binary)
    keys = [(await binary.store_data(bytes([number]))).file_key for number in range(20)]
    for key in keys:
        await binary.get_data(key)
    few = bdr.ReaperConfig(batch_size=3)
    reapers = [await connect(reaper=few) for _ in range(2)]
    await change(binary, "UPDATE bdr.binary_data_reference SET max_retention = '0'")
    reports = await asyncio.gather(*(one.reap() for one in reapers))
    assert sum(report.references for report in reports) == 20
    for key in keys:
        await until_gone(binary, key)


async def test_a_remembered_place_whose_object_is_gone_means_gone_and_never_lost(connect: Connect) -> None:
    binary, key = await remembering(connect, cache=UNCACHED)
    file = await object_file(binary, key)
    # As if the hint was lost: the rows go without one.
    await change(binary, "DELETE FROM bdr.binary_data_reference")
    await change(binary, "UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now()")
    file.unlink()
    with pytest.raises(bdr.Gone):
        await binary.get_data(key)
    with pytest.raises(bdr.FileNotFound):
        await binary.get_data(key)
    await change(binary, "DELETE FROM bdr.blob")


async def test_a_remembered_place_that_was_moved_is_found_anew(connect: Connect) -> None:
    binary, key = await remembering(connect, cache=UNCACHED)
    file = await object_file(binary, key)
    file.rename(file.with_name("moved"))
    await change(binary, "UPDATE bdr.blob SET object_path = left(object_path, 3) || 'moved'")
    assert await binary.get_data(key) == b"hello"
    sent = Statements(binary)
    assert await binary.get_data(key) == b"hello"
    assert await sent.number() == 0


async def test_a_file_that_was_released_meanwhile_is_touched_although_it_was_held_when_it_was_asked(
    connect: Connect,
) -> None:
    binary, key = await remembering(connect)
    await binary.access.flush()
    old = "UPDATE bdr.binary_data_reference SET last_access_at = '2020-01-01', zero_ref_retention = NULL"
    recent = "SELECT last_access_at > '2021-01-01' FROM bdr.binary_data_reference"
    for count, touched in ((1, False), (0, True)):
        await change(binary, old)
        await set_count(binary, key, count)
        assert await binary.get_data(key) == b"hello"
        await binary.access.flush()
        assert await rows(binary, recent) == [(touched,)], count


async def until_forgotten(binary: BinaryDataLifecycleManager) -> None:
    async def forgotten() -> bool:
        return len(binary.engine.locations) == 0

    await until(forgotten)


async def cut_off(
    connect: Connect, connect_through: ConnectThrough
) -> tuple[BinaryDataLifecycleManager, TcpProxy, BinaryDataLifecycleManager, str]:
    """An engine that remembers a file, the proxy before it, another engine, and the key."""
    binary, proxy = await connect_through(access=NEVER, cache=bdr.CacheConfig())
    await trusting(binary)
    other = await connect()
    key = (await other.store_data(b"hello")).file_key
    assert await binary.get_data(key) == b"hello"
    return binary, proxy, other, key


async def test_a_lost_connection_makes_it_ask_and_a_new_one_makes_it_remember(
    connect: Connect, connect_through: ConnectThrough
) -> None:
    binary, proxy, other, key = await cut_off(connect, connect_through)
    proxy.stop()
    await until_forgotten(binary)
    # What was deleted while nobody listened is never told again.
    await other.delete_data(key)
    await proxy.start()
    await trusting(binary)
    with pytest.raises(bdr.FileNotFound):
        await binary.get_data(key)
    new = (await other.store_data(b"new")).file_key
    assert await binary.get_data(new) == b"new"
    await other.delete_data(new)
    await until_gone(binary, new)


async def test_a_connection_that_has_fallen_silent_is_believed_no_longer_than_is_said(
    connect: Connect, connect_through: ConnectThrough
) -> None:
    binary, proxy, other, key = await cut_off(connect, connect_through)
    proxy.pause()
    began = time.monotonic()
    await other.delete_data(key)

    async def believed() -> bool:
        return binary.engine.locations.get(key) is not None

    assert await believed()

    async def asks() -> bool:
        return not await believed()

    await until(asks)
    assert time.monotonic() - began < listening.BELIEVED + 1
    proxy.resume()
    await until_gone(binary, key)


async def test_a_listener_ends_with_its_engine_and_with_an_engine_that_was_declared_dead(
    database_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    async with bdr.connect(database_url, fs_config, database=bdr.DatabaseConfig(pool_size=1)) as binary:
        await trusting(binary)
        assert len(await fetch(database_url, LISTENING)) == 1
        binary.engine.close("declared dead")

        async def ended() -> bool:
            return await fetch(database_url, LISTENING) == []

        await until(ended)
        assert binary.engine.locations.mark() is None
    await require_nothing_left(database_url)


async def test_anything_else_on_the_channel_makes_it_ask_anew(connect: Connect, database_url: str) -> None:
    binary, _ = await remembering(connect)
    connection = await asyncpg.connect(database_url)
    await connection.execute("SELECT pg_notify($1, 'a later version')", CHANNEL)
    await connection.close()
    await until_forgotten(binary)
    await trusting(binary)


async def test_thousands_of_blobs_are_told_of_in_one_statement_that_postgresql_takes(database_url: str) -> None:
    every = [uuid.uuid4() for _ in range(1000)]
    sent = list(payloads(every))
    assert max(map(len, sent)) < 8000
    assert [one for payload in sent for one in blobs_in(payload)] == every
    heard: list[uuid.UUID] = []
    connection = await asyncpg.connect(database_url)
    await connection.add_listener(CHANNEL, lambda *told: heard.extend(blobs_in(str(told[3]))))
    await NOTIFY.fetch(connection, {"asked_payload": sent})
    await connection.close()
    assert set(heard) == set(every)


def place(blob_id: uuid.UUID | None = None) -> Location:
    return Location(blob_id or uuid.uuid4(), "main", "path", 5, b"", 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time that the map goes by."""
    now = [1000.0]
    monkeypatch.setattr(locations, "time", type("Time", (), {"monotonic": staticmethod(lambda: now[0])}))

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def believing(limit: int = 10) -> Locations:
    made = Locations(limit)
    made.trust(1e9)
    return made


def test_it_is_bounded_and_what_was_not_used_for_longest_goes(clock: Callable[[float], None]) -> None:
    made = believing(3)
    for key in "abc":
        made.put(key, place(), made.mark())
    assert made.get("a") is not None
    made.put("d", place(), made.mark())
    assert [key for key in "abcd" if made.get(key)] == ["a", "c", "d"]
    assert (len(made), len(made._keys)) == (3, 3)


def test_an_entry_is_believed_for_so_long_and_only_while_the_listener_is(clock: Callable[[float], None]) -> None:
    made = Locations(10)
    made.put("a", place(), made.mark())
    made.trust(1005)
    made.put("b", place(), made.mark())
    assert [made.get("a"), made.get("b") is not None] == [None, True]
    clock(5)
    assert (made.get("b"), made.mark()) == (None, None)
    made.trust(2000)
    assert made.get("b") is not None
    clock(locations.LONGEST - 5)
    assert made.get("b") is None


def test_the_age_of_an_entry_counts_from_when_the_catalog_was_asked(clock: Callable[[float], None]) -> None:
    made = believing()
    mark = made.mark()
    clock(locations.LONGEST - 1)
    made.put("a", place(), mark)
    assert made.get("a") is not None
    clock(1)
    assert made.get("a") is None


def test_all_keys_of_a_blob_are_dropped_and_no_others(clock: Callable[[float], None]) -> None:
    made = believing()
    shared = uuid.uuid4()
    for key, blob_id in (("a", shared), ("b", shared), ("c", uuid.uuid4())):
        made.put(key, place(blob_id), made.mark())
    made.drop([shared])
    assert [made.get(key) is not None for key in "abc"] == [False, False, True]
    assert len(made) == 1


def test_what_was_dropped_while_the_catalog_was_asked_is_not_kept(clock: Callable[[float], None]) -> None:
    made = believing()
    gone, other = uuid.uuid4(), uuid.uuid4()
    mark = made.mark()
    made.drop([gone])
    made.put("a", place(gone), mark)
    made.put("b", place(other), mark)
    assert [made.get(key) is not None for key in "ab"] == [False, True]
    made.put("a", place(gone), made.mark())
    assert made.get("a") is not None
    mark = made.mark()
    made.distrust()
    made.trust(1e9)
    made.put("c", place(), mark)
    assert len(made) == 0


def test_who_asked_before_what_is_forgotten_keeps_nothing(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_REMEMBERED", 2)
    made = believing()
    gone = uuid.uuid4()
    early, late = made.mark(), None
    made.drop([gone])
    late = made.mark()
    made.drop([uuid.uuid4(), uuid.uuid4()])
    assert len(made._dropped) == 2
    made.put("a", place(gone), early)
    made.put("b", place(), late)
    assert [made.get(key) is not None for key in "ab"] == [False, True]
