"""Valkey and PostgreSQL behind a proxy that holds their connections: told in time, and nothing is left behind."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import pytest

import bdr
from bdr.errors import CatalogUnavailable, StorageUnavailable
from tests.faults.conftest import SHORT
from tests.faults.faults import struck
from tests.faults.support import KEPT, Binary, require_nothing_lost, require_well, stuck
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, RedisServer
from tests.guarantees import objects_in
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import until_quiet
from tests.manager.support import NEVER
from tests.reaper.support import EAGER

Call = Callable[[Binary, str], Awaitable[object]]

# It also holds for what is asked while the engine joins, on a machine that may stand still for a moment.
STATEMENT: Final = timedelta(seconds=4)

CALLS: Final[dict[str, Call]] = {
    "store": lambda binary, _: binary.store_data(b"new"),
    "get": lambda binary, key: binary.get_data(key),
    "register": lambda binary, key: binary.register_reference(key),
    "delete": lambda binary, key: binary.delete_data(key),
    "reap": lambda binary, _: binary.reap(),
}


async def test_a_write_to_redis_that_is_done_but_never_answered_is_removed(
    connect: Connect, proxy: MakeProxy, redis_server: RedisServer, make_storage_config: MakeStorageConfig
) -> None:
    between = await proxy(redis_server.host, redis_server.port)
    place = make_storage_config("redis", config={"endpoint": f"redis://{between.host}:{between.port}"})
    binary = await connect(storage=place, reaper=EAGER)
    short = place.model_copy(update={"timeout": SHORT, "io_timeout": SHORT})
    hasty = await connect(storage=short, reaper=EAGER)
    key = (await binary.store_data(KEPT)).file_key
    between.on_client_data(lambda chunk: between.pause() if b"SET" in chunk else None)
    struck()
    with pytest.raises(StorageUnavailable, match=r"could not write .* (timeout|timed out)"):
        await hasty.store_data(b"unheard" * 100)
    between.on_client_data(None)
    between.resume()
    assert len(await objects_in(binary.engine.storage("main"))) == 2
    ((state, *_),) = await stuck(binary)
    assert state == "deleting"
    await require_well(binary, {key: KEPT})


@pytest.mark.parametrize("call", CALLS)
async def test_a_database_that_is_silent_is_given_up_in_bounded_time(
    connect: Connect, connect_through: ConnectThrough, call: str
) -> None:
    binary = await connect(reaper=EAGER, cache=bdr.CacheConfig(capacity=0))
    limits = bdr.DatabaseConfig(statement_timeout=STATEMENT, connect_timeout=SHORT, pool_timeout=timedelta(seconds=5))
    far, between = await connect_through(access=NEVER, database=limits, reaper=EAGER)
    key = (await binary.store_data(KEPT)).file_key
    assert await far.get_data(key) == KEPT
    between.pause()
    struck()
    async with asyncio.timeout(60):
        with pytest.raises((CatalogUnavailable, bdr.OutcomeUnknown), match=r"postgresql://|the database"):
            await CALLS[call](far, key)
    between.cut()
    between.resume()
    await until_quiet(binary)
    # What was asked may have happened, wholly: then a delete has left nothing, and the rest is as it was.
    kept = {key: KEPT} if call != "delete" or await binary.data_exists(key) else {}
    await require_nothing_lost(binary, kept)
    await require_well(binary, kept)
