"""The stage of this package's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.postgres import PostgresServer
from tests.interleaving.stage import Stage, open_stage


@pytest.fixture(scope="module")
async def stage(postgres: PostgresServer, template_database: str) -> AsyncIterator[Stage]:
    """One catalog for all tests of a module: every order of steps begins on rows of its own."""
    name = await postgres.create_database(template_database)
    # A deadlock is noticed at once, but it is the server that has to end it.
    await postgres.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '50ms'")
    async with open_stage(postgres.url(name)) as stage:
        yield stage
    await postgres.drop_database(name)
