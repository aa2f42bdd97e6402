"""`bdr doctor`: a line for everything that has to be right, and what to do where it is not."""

import platform
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bdr.cli.findings import Finding, State, emit_findings
from bdr.cli.options import Given, Json
from bdr.cli.storages import check_storages
from bdr.errors import BinaryStorageError, ConfigError

if TYPE_CHECKING:
    from bdr.catalog.database import Database
    from bdr.settings import Settings

_OLDEST_SERVER = 150_000
_PACKAGES = ("bdr", "sqlalchemy", "asyncpg", "alembic", "opendal")


async def doctor(*, quick: bool = False, as_json: Json = False, common: Given) -> int:
    """Check settings, database, schema and storages.

    The exit code is 1 when anything is wrong.

    Args:
        quick: Only settings, database and schema, as for the health check of a service.
    """
    try:
        settings = common.settings()
    except ConfigError as error:
        return emit_findings([Finding.wrong("settings", error)], as_json=as_json)
    findings = [Finding.ok("settings", "can be read; `bdr config show` lists them")]
    if not quick:
        findings.append(_versions())
    findings += await _examine(settings, quick=quick)
    return emit_findings(findings, as_json=as_json)


def _versions() -> Finding:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return Finding.note("versions", f"Python {platform.python_version()}, {packages}")


async def _examine(settings: "Settings", *, quick: bool) -> Sequence[Finding]:
    from bdr.catalog.database import Database
    from bdr.joining import database_url

    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(database_url(settings))
            database = Database(url, config=settings.database, application_name="bdr doctor")
            stack.push_async_callback(database.close)
            findings = [await _server(settings, database)]
        except BinaryStorageError as error:
            return [Finding.wrong("database", error)]
        if not quick:
            findings.append(await _clock(database))
        findings.append(await _schema(database))
        if not quick and findings[-1].state is State.OK:
            findings += await check_storages(settings, database)
        return findings


async def _server(settings: "Settings", database: "Database") -> Finding:
    name = await _asked(database, "current_setting('server_version')")
    number = await _asked(database, "current_setting('server_version_num')::int")
    where = database.shown if settings.database_url else f"embedded, in {settings.data_dir / 'postgres'}"
    if number < _OLDEST_SERVER:
        return Finding.wrong("database", f"PostgreSQL {name}, {where}: bdr needs PostgreSQL 15 or newer")
    return Finding.ok("database", f"PostgreSQL {name}, {where}")


async def _clock(database: "Database") -> Finding:
    before = datetime.now(UTC)
    there = await _asked(database, "clock_timestamp()")
    here = before + (datetime.now(UTC) - before) / 2
    offset = (here - there).total_seconds()
    side = "ahead of" if offset > 0 else "behind"
    return Finding.note(
        "clock", f"this machine is {abs(offset):.2f} s {side} the database, whose clock is the only one used"
    )


async def _schema(database: "Database") -> Finding:
    from bdr.catalog.migrate import require_current

    try:
        await require_current(database)
    except BinaryStorageError as error:
        return Finding.wrong("schema", error)
    return Finding.ok("schema", "is the one that this version needs")


async def _asked(database: "Database", expression: str) -> Any:
    from sqlalchemy import text

    async with database.reading() as connection:
        return await connection.scalar(text(f"SELECT {expression}"))
