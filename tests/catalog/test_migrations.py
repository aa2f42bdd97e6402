"""The migrations: up, down and up again, equal to the tables, and safe to run twice at once."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from bdr.catalog import migrate
from bdr.catalog.database import Database
from bdr.catalog.tables import metadata
from bdr.errors import Busy, CatalogAhead, CatalogNotMigrated, CatalogUnavailable, ConfigError, InvalidArgument
from bdr.settings import DatabaseConfig
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.proxy import LOOPBACK, MakeProxy

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOYER_LOCK: Final = 0x6264725F6D696772
# The revision that made the audit views, which are dropped first of what takes a lock.
VIEWS: Final = "12d8752c84d7"
NEWEST: Final = migrate.heads()[0]

# Everything that a migration can get wrong: columns, constraints, indexes, storage options and comments.
SCHEMA_SQL: Final = """
WITH ours AS (
    SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'bdr' AND c.relkind = 'r' AND c.relname <> 'alembic_version'
)
SELECT format('%s: options %s, comment %s', relname, reloptions, obj_description(oid)) FROM ours
UNION ALL
SELECT format('%s.%s: %s %s null %s default %s generated %s collation %s comment %s', relname, attname,
    format_type(atttypid, atttypmod), attidentity, NOT attnotnull, pg_get_expr(adbin, adrelid), attgenerated,
    attcollation::regcollation, col_description(ours.oid, attnum))
FROM ours JOIN pg_attribute a ON a.attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = ours.oid AND d.adnum = attnum
UNION ALL
SELECT format('%s: %s %s', relname, conname, pg_get_constraintdef(k.oid))
FROM ours JOIN pg_constraint k ON conrelid = ours.oid
UNION ALL
SELECT pg_get_indexdef(indexrelid) FROM ours JOIN pg_index ON indrelid = ours.oid
ORDER BY 1
"""


async def run_script(url: str, script: str) -> None:
    """Run SQL as psql does, one statement after another: an index made concurrently goes with no other."""
    async with connected(url) as connection:
        for statement in filter(str.strip, script.split(";\n\n")):
            await connection.execute(statement)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def schema_of(url: str) -> list[str]:
    async with connected(url) as connection:
        return [row[0] for row in await connection.fetch(SCHEMA_SQL)]


async def requires_current(url: str) -> None:
    database = Database(url, config=DatabaseConfig())
    try:
        await migrate.require_current(database)
    finally:
        await database.close()


@pytest.mark.both_majors
async def test_up_down_and_up_again_leaves_the_same_schema(empty_database_url: str) -> None:
    await migrate.upgrade(empty_database_url)
    first = await schema_of(empty_database_url)
    await migrate.downgrade(empty_database_url, "base")
    assert await schema_of(empty_database_url) == []
    assert await migrate.current(empty_database_url) is None
    await migrate.upgrade(empty_database_url)
    assert await schema_of(empty_database_url) == first
    assert len(first) > 80


@pytest.mark.both_majors
async def test_migrations_make_what_the_tables_say(database_url: str, empty_database_url: str) -> None:
    engine = create_async_engine(empty_database_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA bdr"))
        await connection.run_sync(metadata.create_all)
    await engine.dispose()
    assert await schema_of(database_url) == await schema_of(empty_database_url)
    assert await migrate.check(database_url) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE bdr.storage DROP COLUMN marked_at",
        "ALTER TABLE bdr.blob DROP CONSTRAINT ck_blob_size",
        "DROP INDEX bdr.ix_binary_data_reference_expires_at",
        "COMMENT ON TABLE bdr.storage IS 'other'",
        "ALTER TABLE bdr.operation ALTER COLUMN processed_bytes SET DEFAULT 1",
    ],
)
async def test_check_finds_drift(database_url: str, change: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute(change)
    assert len(await migrate.check(database_url)) == 1


async def test_check_leaves_what_is_not_ours_alone(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute("CREATE TABLE bdr.someone_elses (x int); CREATE TABLE public.another (x int)")
    assert await migrate.check(database_url) == []


async def test_every_table_and_view_and_column_has_a_comment(database_url: str) -> None:
    async with connected(database_url) as connection:
        silent = await connection.fetch(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
            "WHERE c.relnamespace = 'bdr'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 "
            "AND (obj_description(c.oid, 'pg_class') IS NULL "
            "OR (c.relname <> 'alembic_version' AND col_description(c.oid, a.attnum) IS NULL))"
        )
    assert silent == []


def test_there_is_one_head_and_files_are_named_in_its_order() -> None:
    assert len(migrate.heads()) == 1
    in_order = [one.revision for one in reversed(migrate.history())]
    assert migrate._revisions() == in_order
    assert in_order[-1] == migrate.heads()[0]
    assert migrate.history()[-1].previous is None
    for path in (ROOT / "migrations" / "versions").glob("*.py"):
        assert re.fullmatch(r"\d{8}_\d{4}_[0-9a-f]{12}_[a-z0-9_]+\.py", path.name)


def test_every_revision_can_be_undone() -> None:
    for revision in ScriptDirectory(str(migrate.location())).walk_revisions():
        assert revision.module.downgrade.__code__.co_code != (lambda: None).__code__.co_code


@pytest.mark.both_majors
async def test_the_sql_needs_no_server_and_makes_the_same_schema(database_url: str, empty_database_url: str) -> None:
    script = await migrate.upgrade(None, sql=True)
    assert "SET lock_timeout = '4s'" in script
    assert "SET statement_timeout = '5s'" in script
    await run_script(empty_database_url, script)
    assert await schema_of(empty_database_url) == await schema_of(database_url)
    assert await migrate.current(empty_database_url) == migrate.heads()[0]


async def test_an_index_that_a_cut_off_attempt_left_behind_is_made_anew(
    database_url: str, empty_database_url: str
) -> None:
    await migrate.upgrade(empty_database_url, "dcf7b82c6774")
    async with connected(empty_database_url) as connection:
        await connection.execute(
            "CREATE INDEX ix_binary_data_reference_namespace_file_key ON bdr.binary_data_reference (namespace);"
            "UPDATE pg_index SET indisvalid = false"
            " WHERE indexrelid = 'bdr.ix_binary_data_reference_namespace_file_key'::regclass"
        )
    await migrate.upgrade(empty_database_url)
    assert await schema_of(empty_database_url) == await schema_of(database_url)
    async with connected(empty_database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


async def test_the_sql_of_a_downgrade_is_written_too(empty_database_url: str) -> None:
    script = await migrate.downgrade(None, f"{migrate.heads()[0]}:base", sql=True)
    await migrate.upgrade(empty_database_url)
    await run_script(empty_database_url, script)
    assert await migrate.current(empty_database_url) is None


@pytest.mark.both_majors
async def test_two_deployers_at_once_migrate_once(empty_database_url: str) -> None:
    await asyncio.gather(*(run_alembic(empty_database_url, "upgrade", "head") for _ in range(2)))
    assert await migrate.current(empty_database_url) == migrate.heads()[0]
    async with connected(empty_database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM bdr.catalog") == 1


async def test_a_deployer_waits_for_another_and_says_so_when_it_takes_too_long(empty_database_url: str) -> None:
    async with connected(empty_database_url) as other:
        await other.execute(f"SELECT pg_advisory_lock({DEPLOYER_LOCK})")
        with pytest.raises(Busy, match="Another migration"):
            await migrate.upgrade(empty_database_url, wait=timedelta(seconds=0.3))
        assert await migrate.current(empty_database_url) is None
        waiting = asyncio.create_task(migrate.upgrade(empty_database_url))
        await until_connected(other, "bdr migrations")
        assert not waiting.done()
    await waiting
    assert await migrate.current(empty_database_url) == migrate.heads()[0]


async def until_connected(connection: asyncpg.Connection, application: str) -> None:
    here = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()"
    async with asyncio.timeout(30):
        while not await connection.fetchval(here, application):  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)


async def test_a_migration_gives_up_on_what_is_locked_and_changes_nothing(database_url: str) -> None:
    # Whatever came after the views is gone by then: each step is committed by itself.
    await migrate.downgrade(database_url, VIEWS)
    async with connected(database_url) as other, other.transaction():
        await other.execute("LOCK TABLE bdr.usage IN ACCESS SHARE MODE")
        with pytest.raises(Busy, match="55P03"):
            await migrate.downgrade(database_url, "base")
    assert await migrate.current(database_url) == VIEWS
    await migrate.upgrade(database_url)
    assert await migrate.check(database_url) == []


async def test_each_wrong_database_is_told_apart(
    database_url: str, empty_database_url: str, postgres: PostgresServer
) -> None:
    await requires_current(database_url)
    with pytest.raises(CatalogNotMigrated, match="bdr db upgrade"):
        await requires_current(empty_database_url)
    with pytest.raises(CatalogNotMigrated, match="bdr db upgrade"):
        await migrate.check(empty_database_url)
    with pytest.raises(ConfigError, match="does not exist"):
        await migrate.upgrade(postgres.url("nowhere"))
    with pytest.raises(CatalogUnavailable):
        await migrate.upgrade("postgresql://postgres@127.0.0.1:1/x")
    with pytest.raises(ConfigError, match="begin with"):
        await migrate.upgrade("mysql://localhost/x")


@pytest.mark.parametrize("revision", ["head", NEWEST])
async def test_a_connection_lost_at_any_of_its_messages_is_unavailable(
    postgres: PostgresServer, database_url: str, proxy: MakeProxy, revision: str
) -> None:
    between = await proxy(LOOPBACK, postgres.port)
    url = database_url.replace(f":{postgres.port}/", f":{between.port}/") + "?sslmode=disable"
    for message in count(1):
        between.cut_at(message)
        try:
            await migrate.upgrade(url, revision)
        except CatalogUnavailable:
            continue
        break
    # The password, the settings, what SQLAlchemy asks, and what we ask.
    assert message > 5


async def test_an_older_catalog_is_told_from_a_newer_one(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrate._revisions()
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_revisions", lambda: [*known, "ffffffffffff"])
        with pytest.raises(CatalogNotMigrated, match=r"needs ffffffffffff. Run `bdr db upgrade`"):
            await requires_current(database_url)
    async with connected(database_url) as connection:
        await connection.execute("UPDATE bdr.alembic_version SET version_num = 'eeeeeeeeeeee'")
    with pytest.raises(CatalogAhead, match="eeeeeeeeeeee"):
        await requires_current(database_url)
    with pytest.raises(CatalogAhead, match="eeeeeeeeeeee"):
        await migrate.upgrade(database_url)


async def test_an_unknown_revision_is_refused(database_url: str) -> None:
    with pytest.raises(InvalidArgument, match="nonsense"):
        await migrate.upgrade(database_url, "nonsense")


async def test_upgrading_what_is_current_does_nothing(database: Database, database_url: str) -> None:
    async with database.reading() as connection:
        before = await connection.scalar(text("SELECT catalog_id FROM bdr.catalog"))
    await migrate.upgrade(database_url)
    async with database.reading() as connection:
        assert await connection.scalar(text("SELECT catalog_id FROM bdr.catalog")) == before


async def test_nothing_is_printed(empty_database_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    await migrate.upgrade(empty_database_url)
    await migrate.check(empty_database_url)
    assert capfd.readouterr() == ("", "")


async def test_a_catalog_lives_in_a_database_with_other_tables_of_the_same_names(empty_database_url: str) -> None:
    async with connected(empty_database_url) as connection:
        await connection.execute("CREATE TABLE public.blob (x int); CREATE TABLE public.alembic_version (x int)")
    await migrate.upgrade(empty_database_url)
    assert await migrate.check(empty_database_url) == []
    await migrate.downgrade(empty_database_url, "base")
    async with connected(empty_database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM public.blob") == 0


async def test_a_role_that_may_not_create_schemas_can_migrate_one_made_for_it(
    empty_database_url: str, postgres: PostgresServer
) -> None:
    name = empty_database_url.rpartition("/")[2]
    async with connected(empty_database_url) as connection:
        await connection.execute(f"CREATE ROLE deployer_{name} LOGIN; CREATE SCHEMA bdr AUTHORIZATION deployer_{name}")
    url = postgres.url(name, user=f"deployer_{name}")
    await migrate.upgrade(url)
    assert await migrate.check(url) == []


async def run_alembic(url: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "alembic", "-x", f"url={url}", *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=subprocess.PIPE)
    _, error = await process.communicate()
    assert process.returncode == 0, error.decode()
