"""Engines whose connections to the database or to a storage a test can hold, slow down and count."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import bdr
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy, TcpProxy
from tests.fixtures.storages import MakeStorageConfig, RedisServer
from tests.lifecycle.conftest import connect_through

__all__ = ["connect_through"]

ConnectRedis = Callable[..., Awaitable[tuple[bdr.BinaryDataLifecycleManager, TcpProxy]]]


@pytest.fixture
def connect_redis(
    connect: Connect, proxy: MakeProxy, redis_server: RedisServer, make_storage_config: MakeStorageConfig
) -> ConnectRedis:
    """`await connect_redis(**settings)` gives an engine on Valkey and the proxy between them."""

    async def start(**settings: Any) -> tuple[bdr.BinaryDataLifecycleManager, TcpProxy]:
        between = await proxy(redis_server.host, redis_server.port)
        config = make_storage_config("redis", config={"endpoint": f"redis://{between.host}:{between.port}"})
        return await connect(storage=config, **settings), between

    return start
