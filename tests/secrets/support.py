"""What a secret must not be found in, all put into one text."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import pytest

from tests.manager.support import fetch

_TABLES = """
    SELECT format('SELECT t::text FROM %I.%I t', table_schema, table_name) FROM information_schema.tables
    WHERE table_schema IN ('bdr', 'public')
"""
_SESSIONS = "SELECT application_name, query FROM pg_stat_activity WHERE datname = current_database()"


def told_by(error: BaseException) -> str:
    """All that an error, those behind it, and its traceback say to whoever prints or pickles them."""
    said = ["".join(traceback.format_exception(error))]
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        said += [str(one), repr(one), repr(one.args), repr(vars(one))]
        # A cause that is only suppressed is still there for a debugger, or a tool that reports errors.
        todo += [one.__cause__, one.__context__]
    return "\n".join(said)


async def written_in(database_url: str) -> str:
    """Every row of every table and view as text, and what the sessions show of themselves."""
    dump = [str(row) for row in await fetch(database_url, _SESSIONS)]
    for (query,) in await fetch(database_url, _TABLES):
        dump += [text for (text,) in await fetch(database_url, query)]
    assert dump
    return "\n".join(dump)


@contextmanager
def everything_logged(captured: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Every logger says all it can, whatever the libraries asked for before."""
    names = [*logging.root.manager.loggerDict, "sqlalchemy.engine.Engine", "sqlalchemy.pool", "opendal"]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        with captured.at_level(logging.DEBUG):
            yield captured
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


async def guarded_role(url: str, role: str, password: str) -> None:
    """A role that has to give its password."""
    connection = await asyncpg.connect(url)
    try:
        quoted = password.replace("'", "''")
        await connection.execute(f"DROP ROLE IF EXISTS {role}")
        await connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{quoted}'")
    finally:
        await connection.close()
