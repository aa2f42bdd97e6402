"""Access times: a read touches its reference soon, a held one seldom, and never is one forgotten."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.manager import access
from bdr.manager.access import AccessTimes
from tests.fixtures.engines import Connect
from tests.lifecycle.conftest import caller
from tests.lifecycle.support import change, rows
from tests.manager.support import NEVER, statements_of
from tests.storage.helpers import until

__all__ = ["caller"]

LONG_AGO = "2020-01-01T00:00:00+00:00"
EAGER = bdr.AccessConfig(flush_interval=timedelta(hours=1), touch_interval=timedelta(0))


async def stored(binary: BinaryDataLifecycleManager, count: int = 1, *, held: bool = False) -> list[str]:
    """Keys that were last used long ago."""
    keys = [(await binary.store_data(bytes([number]) * 10)).file_key for number in range(count)]
    await change(
        binary,
        "UPDATE bdr.binary_data_reference SET last_access_at = CAST(:then AS timestamptz), ref_count = :held",
        then=datetime.fromisoformat(LONG_AGO),
        held=int(held),
    )
    return keys


async def touched(binary: BinaryDataLifecycleManager) -> set[str]:
    """The keys that were touched since; they are made old again."""
    # One statement: what is touched between two would be lost.
    found = await rows(
        binary,
        f"UPDATE bdr.binary_data_reference SET last_access_at = '{LONG_AGO}' "
        "WHERE last_access_at > now() - interval '10 minutes' RETURNING file_key",
    )
    return {key for (key,) in found}


async def read(binary: BinaryDataLifecycleManager, how: str, key: str) -> None:
    if how == "get_data":
        await binary.get_data(key)
    elif how == "get_range":
        await binary.get_range(key, 0, 5)
    else:
        async with binary.open(key) as reader:
            await reader.read(5)


@pytest.mark.parametrize("how", ["get_data", "get_range", "open"])
async def test_every_kind_of_read_touches_within_the_flush_interval(connect: Connect, how: str) -> None:
    binary = await connect()
    (key,) = await stored(binary)
    await read(binary, how, key)

    async def seen() -> bool:
        return await touched(binary) == {key}

    await until(seen)


async def test_what_only_looks_touches_nothing(connect: Connect) -> None:
    binary = await connect(access=EAGER)
    (key,) = await stored(binary)
    await binary.data_exists(key)
    await binary.get_metadata(key)
    await binary.get_details(key)
    await binary.list_references()
    await binary.access.flush()
    assert await touched(binary) == set()


async def test_a_read_from_the_cache_touches_too(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    (key,) = await stored(binary)
    for _ in range(2):
        await binary.get_data(key)
        await binary.access.flush()
        assert await touched(binary) == {key}


async def test_a_held_reference_is_touched_at_most_once_an_interval(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("bdr.manager.access.time.monotonic", lambda: now)
    binary = await connect(access=NEVER)
    (key,) = await stored(binary, held=True)
    # Seconds after the first read, and whether a read then touches.
    for after, expected in ((0, True), (1, False), (59, False), (61, True), (100, False), (122, True)):
        now = 1000.0 + after
        await binary.get_data(key)
        await binary.access.flush()
        assert (await touched(binary) == {key}) == expected, after


async def test_an_unheld_reference_is_touched_by_every_read(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    (key,) = await stored(binary)
    for _ in range(3):
        await binary.get_data(key)
        await binary.access.flush()
        assert await touched(binary) == {key}
    await binary.access.flush()
    assert await touched(binary) == set()


async def test_a_held_reference_that_is_read_while_it_is_written_is_not_written_twice(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    (key,) = await stored(binary, held=True)
    await binary.get_data(key)
    flushing = asyncio.create_task(binary.access.flush())
    await asyncio.sleep(0)
    binary.access.note(key, held=True)
    await flushing
    assert await touched(binary) == {key}
    await binary.access.flush()
    assert await touched(binary) == set()


async def test_many_reads_are_written_in_one_statement(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    keys = await stored(binary, 20)
    for _ in range(3):
        await asyncio.gather(*(binary.get_data(key) for key in keys))
    sent = statements_of(binary, "UPDATE bdr.binary_data_reference")
    await binary.access.flush()
    assert len(sent) == 1
    assert await touched(binary) == set(keys)
    await binary.access.flush()
    # One of the two was the test's own.
    assert len(sent) == 2


async def test_rows_that_somebody_holds_locked_are_tried_again(connect: Connect, caller: AsyncEngine) -> None:
    binary = await connect(access=NEVER)
    locked, free, gone = await stored(binary, 3)
    for key in (locked, free, gone):
        await binary.get_data(key)
    await change(binary, "DELETE FROM bdr.binary_data_reference WHERE file_key = :key", key=gone)
    async with caller.begin() as connection:
        lock = text("SELECT FROM bdr.binary_data_reference WHERE file_key = :key FOR UPDATE")
        await connection.execute(lock, {"key": locked})
        for _ in range(2):
            await binary.access.flush()
    assert await touched(binary) == {free}
    await binary.access.flush()
    assert await touched(binary) == {locked}
    await binary.access.flush()
    assert await touched(binary) == set()


async def test_a_slow_reader_touches_again_and_again_and_at_its_end(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("bdr.manager.access.time.monotonic", lambda: now)
    binary = await connect(access=NEVER)
    (key,) = await stored(binary)
    async with binary.open(key) as reader, binary.open(key):
        seen = []
        for _ in range(5):
            await reader.read(1)
            await binary.access.flush()
            seen.append(await touched(binary) == {key})
            now += 31
        assert seen == [True, False, True, False, True]
        await binary.access.flush()
        await touched(binary)
    await binary.access.flush()
    assert await touched(binary) == {key}
    now += 1000
    await binary.access.flush()
    assert await touched(binary) == set()


async def test_a_touch_never_sets_the_time_back(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    (key,) = await stored(binary)
    await change(binary, "UPDATE bdr.binary_data_reference SET last_access_at = now() + interval '1 hour'")
    await binary.get_data(key)
    await binary.access.flush()
    assert await rows(binary, "SELECT last_access_at > now() + interval '59 min' FROM bdr.binary_data_reference") == [
        (True,)
    ]


async def test_what_waits_is_written_when_the_connection_closes(
    connect: Connect, database_url: str, fs_config: Any
) -> None:
    other = await connect()
    (key,) = await stored(other)
    async with bdr.connect(database_url, fs_config, access=NEVER) as binary:
        await binary.get_data(key)
        assert await touched(other) == set()
    assert await touched(other) == {key}


async def test_the_memory_for_touched_references_is_bounded(
    binary: BinaryDataLifecycleManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_LIMIT", 10)
    times = AccessTimes(binary.engine.database, timedelta(minutes=1))
    for number in range(50):
        times.note(f"{number:026}", held=True)
        await times.flush()
    assert len(times._touched) == 10
    assert not times._is_recent(f"{39:026}")
    assert times._is_recent(f"{40:026}")
    for number in range(50, 100):
        times.note(f"{number:026}", held=False)
    assert len(times._waiting) == 10
