"""A gate inside COMMIT: whoever changed a row waits there until the test has decided what becomes of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.storage.helpers import until

_NUMBER = 4711
_TRIGGER = f"""
    CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared({_NUMBER}); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER gate AFTER {{changes}} ON bdr.{{table}}
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
    SELECT pg_advisory_lock({_NUMBER});
"""
_WAITING = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {_NUMBER} AND NOT granted"


class CommitGate:
    """Closed as long as it is not opened; each session that commits one of the changes it is for stops at it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def reached(self, sessions: int = 1) -> None:
        """Wait until so many sessions stand at the gate."""

        async def enough() -> bool:
            return len(await self._connection.fetch(_WAITING)) >= sessions

        await until(enough)

    async def open(self) -> None:
        """Let all commits that stand here, and every later one, go through."""
        await self._connection.execute(f"SELECT pg_advisory_unlock({_NUMBER})")

    async def let_through(self) -> None:
        """Let those through who stand here, and stop whoever comes after them."""
        await self._connection.execute(f"SELECT pg_advisory_unlock({_NUMBER}), pg_advisory_lock({_NUMBER})")

    async def end_sessions(self) -> None:
        """End the sessions that stand here: their commits do not happen."""
        for row in await self._connection.fetch(_WAITING):
            await self._connection.execute("SELECT pg_terminate_backend($1, 10000)", row["pid"])


@asynccontextmanager
async def closed_gate(
    database_url: str, changes: str = "INSERT OR UPDATE OR DELETE", table: str = "binary_data_reference"
) -> AsyncIterator[CommitGate]:
    """A gate in the database, for these changes of a table, closed; open at the end."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_TRIGGER.format(changes=changes, table=table))
        yield CommitGate(connection)
    finally:
        await connection.close()
