"""Who holds a connection, who waits for one and how long, and who goes first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

import bdr
from tests.fixtures.engines import SOON, Connect
from tests.guarantees import violations
from tests.lifecycle.support import HeldSource, chunks, rows, until_waiting
from tests.manager.support import fetch, statements_of
from tests.storage.helpers import until

MiB = 1 << 20
PATIENT = {"statement_timeout": "5min", "lock_timeout": "5min"}
STATES = """
    SELECT DISTINCT state FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'bdr held' AND backend_type = 'client backend'
"""


@asynccontextmanager
async def held(database_url: str, key: str) -> AsyncIterator[None]:
    """Somebody else's transaction holds the reference's row: whoever counts it waits, with a connection in hand."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM bdr.binary_data_reference WHERE file_key = $1 FOR UPDATE", key)
            yield
    finally:
        await connection.close()


async def test_when_every_connection_is_in_use_each_call_says_so_after_a_bounded_wait(
    connect: Connect, database_url: str
) -> None:
    watcher = await connect()
    limits = bdr.DatabaseConfig.model_validate(PATIENT | {"pool_size": 2, "pool_timeout": "200ms"})
    # Else a read of what was just stored would need no connection.
    binary = await connect(database=limits, cache=bdr.CacheConfig(locations=0))
    keys = [(await binary.store_data(b"data")).file_key for _ in range(2)]
    calls = (
        lambda: binary.get_data(keys[0]),
        lambda: binary.store_data(b"more"),
        lambda: binary.store_stream(chunks(b"more")),
        lambda: binary.register_reference(keys[1]),
        lambda: binary.release_reference(keys[1]),
        lambda: binary.delete_data(keys[1]),
        binary.list_references,
        lambda: binary.open(keys[0]).__aenter__(),
        binary.reap,
    )
    async with held(database_url, keys[0]), held(database_url, keys[1]):
        waiting = [asyncio.create_task(call) for call in (binary.register_reference(keys[0]), binary.pin(keys[1]))]
        await until_waiting(watcher, 2)
        async with asyncio.timeout(60):
            for call in calls:
                with pytest.raises(bdr.Busy, match=r"within 200ms; nothing was done.* raise `database\.pool_size`"):
                    await call()
    assert await asyncio.gather(*waiting) == [2, None]
    assert await binary.get_data(keys[0]) == b"data"
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_signs_of_life_and_the_end_of_a_store_go_before_callers_who_have_just_come(
    connect: Connect, database_url: str
) -> None:
    watcher = await connect()
    binary = await connect(
        database=bdr.DatabaseConfig.model_validate(PATIENT | {"pool_size": 1, "pool_timeout": "5min"}),
        instance=bdr.InstanceConfig(heartbeat_interval=SOON),
    )
    key = (await binary.store_data(b"data")).file_key
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    async with held(database_url, key):
        registering = asyncio.create_task(binary.register_reference(key))
        await until_waiting(watcher)
        sent = statements_of(binary, "bdr.")
        callers = [asyncio.create_task(binary.get_metadata(key)) for _ in range(50)]
        source.go_on.set()
        turns = binary.engine.database._turns

        async def all_wait() -> bool:
            # The publish of the store, and one step of what goes on in the background.
            return (len(turns._ahead), len(turns._others)) == (2, len(callers))

        await until(all_wait)
    await asyncio.gather(registering, storing, *callers)
    first_caller = next(number for number, one in enumerate(sent) if one.startswith("SELECT"))
    # The driver tells of what went past SQLAlchemy when it is over, and so after the one that was begun next.
    before = " ".join(sent[: first_caller + 2])
    assert "INSERT INTO bdr.binary_data_reference" in before
    assert "UPDATE bdr.engine_instance" in before


async def test_neither_a_slow_reader_nor_a_slow_writer_holds_a_connection(connect: Connect, database_url: str) -> None:
    limits = bdr.DatabaseConfig.model_validate({"pool_size": 1, "pool_timeout": "30s"})
    binary = await connect(database=limits, instance=bdr.InstanceConfig(name="held"))
    data = bytes(range(256)) * (20 * MiB // 256)
    key = (await binary.store_data(data)).file_key
    source = HeldSource(data[: 9 * MiB], data[9 * MiB :])
    writing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    async with binary.open(key) as reader:
        assert await reader.read(MiB) == data[:MiB]
        other = (await binary.store_data(b"other")).file_key
        assert await binary.register_reference(other) == 2
        assert await binary.get_data(other) == b"other"
        assert (await binary.reap()).trouble is None

        async def idle() -> bool:
            return await fetch(database_url, STATES) == [("idle",)]

        await until(idle)
        assert await reader.read() == data[MiB:]
    source.go_on.set()
    assert await binary.get_data((await writing).file_key) == data
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_reading_with_a_lost_database_goes_on(connect: Connect, database_url: str) -> None:
    """What a reader needs of the catalog, it has asked when it was opened."""
    binary = await connect(instance=bdr.InstanceConfig(name="held"))
    data = bytes(20 * MiB)
    key = (await binary.store_data(data)).file_key
    end: Any = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bdr held'"
    async with binary.open(key) as reader:
        first = await reader.read(MiB)
        await fetch(database_url, end)
        assert first + await reader.read() == data
    assert await rows(binary, "SELECT 1") == [(1,)]
