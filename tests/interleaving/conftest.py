"""The stage of this package's tests, and the figure that they come to."""

from collections.abc import AsyncIterator

import pytest

from tests.figures import figure
from tests.fixtures.postgres import PostgresServer
from tests.interleaving.families import ORDERS
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say how many orders were played in all, on however many workers."""
    figure(terminalreporter, exitstatus, "tests/interleaving", ORDERS, "every one came to what the rules say")
