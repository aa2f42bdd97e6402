"""A caller with transactions of its own, and engines that a test can cut off from the database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import bdr
from tests.fixtures.engines import Connect
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.proxy import MakeProxy, TcpProxy

ConnectThrough = Callable[..., Awaitable[tuple[bdr.BinaryDataLifecycleManager, TcpProxy]]]


@pytest.fixture
async def caller(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The caller's own engine on the catalog's database, as a workflow engine has one."""
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    yield engine
    await engine.dispose()


@pytest.fixture
def connect_through(connect: Connect, proxy: MakeProxy, postgres: PostgresServer, database_url: str) -> ConnectThrough:
    """`await connect_through(**settings)` gives an engine and the proxy between it and PostgreSQL.

    It does not listen, so that what passes the proxy is what a test has asked for.
    """

    async def start(**settings: Any) -> tuple[bdr.BinaryDataLifecycleManager, TcpProxy]:
        between = await proxy("127.0.0.1", postgres.port)
        url = database_url.replace(f":{postgres.port}/", f":{between.port}/") + "?sslmode=disable"
        quiet = {"cache": bdr.CacheConfig(locations=0)}
        return await connect(database_url=url, **(quiet | settings)), between

    return start
