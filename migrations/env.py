"""How Alembic reaches the catalog: one deployer at a time, with short locks, in schema `bdr` only."""

import asyncio
import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Literal

import asyncpg
from alembic import context
from sqlalchemy import Column, Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import SchemaItem

from bdr.catalog import url as urls
from bdr.catalog.tables import SCHEMA, metadata
from bdr.errors import Busy, ConfigError

log = logging.getLogger("bdr.migrations")

# A statement that waits for a lock makes every later one on that table wait behind it. So it gives up soon, and the
# deployer tries again. The engines' own time-outs do not apply: one of them could leave an invalid index behind.
LIMITS: Final = {"lock_timeout": "4s", "statement_timeout": "5s"}
DEPLOYER_LOCK: Final = 0x6264725F6D696772
POLL_SECONDS: Final = 0.2
CONNECT_SECONDS: Final = 30
DEFAULT_WAIT: Final = timedelta(minutes=1)

Names = Mapping[Literal["schema_name", "table_name", "schema_qualified_table_name"], str | None]
Kind = Literal["schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint", "check_constraint"]


def include_name(name: str | None, kind: Kind, parents: Names) -> bool:
    """Compare only our own tables; others may live in the same schema or database."""
    if kind == "schema":
        return name == SCHEMA
    return kind != "table" or parents["schema_qualified_table_name"] in metadata.tables


def include_object(item: SchemaItem, _name: str | None, _kind: Kind, _new: bool, other: SchemaItem | None) -> bool:
    """Leave out generated columns that both sides have: Alembic compares their expressions as text, and warns."""
    return not (isinstance(item, Column) and item.computed is not None and other is not None)


OPTIONS: Final[dict[str, Any]] = {
    "target_metadata": metadata,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    "include_name": include_name,
    "include_object": include_object,
    "transaction_per_migration": True,
    "compare_server_default": True,
    # Finds CHECK constraints, by name; Alembic leaves them out otherwise.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}


def run_offline() -> None:
    """Write the SQL that would be run; needs no server."""
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    for name, value in LIMITS.items():
        context.execute(f"SET {name} = '{value}'")
    context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    """Run what was asked for, after every other deployer of this database has finished."""
    target = urls.parse(_url(), application_name="bdr migrations")

    async def connect() -> asyncpg.Connection:
        timeout = target.connect_timeout.total_seconds() if target.connect_timeout else CONNECT_SECONDS
        settings = {**target.session, **LIMITS, "search_path": "public"}
        return await asyncpg.connect(target.dsn, timeout=timeout, server_settings=settings)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    async with engine.connect() as connection:
        await _wait_for_others(connection, target.shown)
        await _make_schema(connection)
        await connection.run_sync(_run)
    await engine.dispose()


async def _wait_for_others(connection: AsyncConnection, shown: str) -> None:
    # Two deployers: the first to ask holds the lock until it disconnects, the second asks again and again and then
    # finds the work done. It never waits inside the server: a waiting statement holds a snapshot, which the first's
    # CREATE INDEX CONCURRENTLY would wait for in turn.
    wait: timedelta = context.config.attributes.get("lock_wait", DEFAULT_WAIT)
    deadline = asyncio.get_running_loop().time() + wait.total_seconds()
    told = False
    while not await _take_lock(connection):
        if asyncio.get_running_loop().time() >= deadline:
            raise Busy(f"Another migration of {shown} is still running after {wait}; try again when it has finished.")
        if not told:
            log.info("Waiting for another migration of %s.", shown)
            told = True
        await asyncio.sleep(POLL_SECONDS)


async def _take_lock(connection: AsyncConnection) -> bool:
    taken = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": DEPLOYER_LOCK})
    await connection.commit()
    return bool(taken)


async def _make_schema(connection: AsyncConnection) -> None:
    # Asked first, because CREATE SCHEMA IF NOT EXISTS needs a privilege even when there is nothing to do. Committed,
    # because Alembic writes its version table into the schema in a transaction of its own.
    if await connection.scalar(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}) is None:
        await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    await connection.commit()


def _run(connection: Connection) -> None:
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def _url() -> str:
    given = context.config.attributes.get("url") or context.get_x_argument(as_dictionary=True).get("url")
    url = given or os.environ.get("BDR_DATABASE_URL")
    if not isinstance(url, str):
        raise ConfigError("No database was named; give `-x url=postgresql://...` or set BDR_DATABASE_URL.")
    return url


if context.is_offline_mode():
    run_offline()
else:
    asyncio.run(run_online())
