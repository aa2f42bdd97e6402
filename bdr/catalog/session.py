"""One connection to PostgreSQL: how it is made, and what its session is held to."""

from datetime import timedelta
from typing import Final

import asyncpg

from bdr.catalog.url import DatabaseUrl
from bdr.settings import DatabaseConfig

# bdr's transactions hold locks; one whose process has stopped in the middle must not hold them for long.
IDLE_IN_TRANSACTION: Final = timedelta(minutes=1)
# The server's own time-out comes first; only one that can no longer be heard is given up on this much later.
UNHEARD: Final = timedelta(seconds=5)


async def open_connection(url: DatabaseUrl, config: DatabaseConfig) -> asyncpg.Connection:
    """A new connection whose session has the limits of `config`."""
    limit = url.connect_timeout or config.connect_timeout
    connection = await asyncpg.connect(
        url.dsn,
        timeout=limit.total_seconds(),
        command_timeout=(config.statement_timeout + UNHEARD).total_seconds(),
        server_settings=dict(url.session),
    )
    try:
        await connection.execute(_session_settings(config))
    except BaseException:
        connection.terminate()
        raise
    return connection


def _session_settings(config: DatabaseConfig) -> str:
    limits = {
        "statement_timeout": config.statement_timeout,
        "lock_timeout": config.lock_timeout,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
    }
    values = {name: f"{int(limit.total_seconds() * 1000)}ms" for name, limit in limits.items()}
    values |= {"timezone": "UTC", "default_transaction_isolation": "read committed"}
    # An acknowledged commit must outlive a crash of the server; any setting but `off` waits for the disk.
    durable = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    return "".join(f"SET {name} = '{value}'; " for name, value in values.items()) + durable
