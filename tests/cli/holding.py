"""Holding what a process does at the point where it writes its records down, inside the transaction of the deed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from tests.storage.helpers import until

HOLD: Final = """
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
    CREATE TRIGGER hold BEFORE {event} FOR EACH ROW EXECUTE FUNCTION hold();
"""
HELD: Final = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
"""


@asynccontextmanager
async def operations_held(url: str, event: str = "INSERT ON bdr.operation") -> AsyncIterator[asyncpg.Connection]:
    """While inside, nothing that writes a record, or does what else is named, comes to its end."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(HOLD.format(event=event))
        await connection.execute("SELECT pg_advisory_lock(1)")
        yield connection
    finally:
        await connection.close()


async def until_held(connection: asyncpg.Connection) -> None:
    async def is_held() -> bool:
        return await connection.fetchval(HELD) is not None

    await until(is_held, 60)
