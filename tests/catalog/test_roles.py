"""The roles of docs/operations.md, as they are written there: each may do its work and nothing else."""

import inspect
import re
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import bdr
from bdr import fsck
from bdr.catalog import migrate
from bdr.storage import open_storage
from tests.fixtures.engines import AT_ONCE
from tests.fixtures.postgres import PostgresServer, wheel_bindir
from tests.guarantees import violations
from tests.lifecycle.support import chunks
from tests.manager.support import until_gone
from tests.storage.helpers import until

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
# The users that the page makes, by what they may do; an auditor is made as an engine is.
OWNER, ENGINE, AUDITOR = "deploy", "engine", "auditor"
SURFACE = """
    SELECT relname, relkind FROM pg_class
    WHERE relnamespace = 'bdr'::regnamespace AND relkind IN ('r', 'v', 'm', 'p', 'S')
"""
CHANGES_OF_THE_SCHEMA = (
    "CREATE TABLE bdr.more (n int)",
    "CREATE VIEW bdr.more AS SELECT 1",
    "CREATE FUNCTION bdr.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TABLE public.more (n int)",
    "CREATE SCHEMA more",
    "ALTER TABLE bdr.blob ADD COLUMN more int",
    "ALTER TABLE bdr.blob DISABLE TRIGGER USER",
    "ALTER TABLE bdr.blob OWNER TO CURRENT_USER",
    "CREATE INDEX more ON bdr.blob (size)",
    "DROP VIEW bdr.usage",
    "DROP TABLE bdr.operation",
    "DROP SCHEMA bdr CASCADE",
    "TRUNCATE bdr.operation",
    "COMMENT ON TABLE bdr.blob IS 'mine'",
    "GRANT bdr_owner TO CURRENT_USER",
    "SET ROLE bdr_owner",
    "COPY bdr.blob TO PROGRAM 'cat'",
    "SELECT pg_read_file('postgresql.conf')",
)


WRITING = (
    "DELETE FROM bdr.{table}",
    "INSERT INTO bdr.{table} DEFAULT VALUES",
    "LOCK TABLE bdr.{table} IN EXCLUSIVE MODE",
)


def documented_sql() -> tuple[str, str]:
    """What makes the roles, and what makes users that have them."""
    page = PAGE.read_text()
    roles = re.search(r"-- roles: begin\n(.*?)-- roles: end", page, re.DOTALL)
    users = re.search(r"```sql\n(CREATE ROLE deploy .*?)```", page, re.DOTALL)
    assert roles, "the page has lost its SQL"
    assert users, "the page has lost its SQL"
    return roles[1], users[1]


def acting_as(url: str, user: str, option: str = "") -> str:
    """The URL of another user: here the server asks nobody for a password."""
    return url.replace("//postgres@", f"//{user}@") + option


def as_owner(url: str) -> str:
    """With the option that the page's command for migrations has."""
    found = re.search(r"--database-url 'postgresql://deploy@[^?]*([^']*)'", PAGE.read_text())
    assert found, "the page has lost its command"
    return acting_as(url, OWNER, found[1])


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    """Roles belong to a whole server, so there is one of their own; the template's catalog is made as the page says."""
    server = PostgresServer(wheel_bindir())
    try:
        server.start()
        server.template = await server.create_database()
        for sql in (*documented_sql(), f"CREATE ROLE {AUDITOR} LOGIN IN ROLE bdr_auditor"):
            await server.execute(sql, server.template)
        await migrate.upgrade(as_owner(server.url(server.template)))
        yield server
    finally:
        server.discard()


@pytest.fixture
async def catalog_url(server: PostgresServer) -> str:
    """A copy of that catalog."""
    return server.url(await server.create_database(await server.migrated_template()))


@pytest.fixture
async def storing(
    catalog_url: str, fs_config: bdr.BinaryStorageConfig
) -> AsyncIterator[bdr.BinaryDataLifecycleManager]:
    """An engine that logs in as the page says."""
    async with bdr.connect(acting_as(catalog_url, ENGINE), fs_config) as binary:
        yield binary
        assert await violations(binary.engine.database, binary.engine.storages) == []


async def refused(url: str, statement: str) -> bool:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        await transaction.rollback()
        await connection.close()
    return False


async def surface(url: str) -> dict[str, str]:
    """Tables, views and sequences of the catalog, as whoever asks can look them up."""
    connection = await asyncpg.connect(url)
    try:
        return {row["relname"]: row["relkind"].decode() for row in await connection.fetch(SURFACE)}
    finally:
        await connection.close()


def verbs(key: str, path: Path) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every public verb with arguments that make it write what it can write, in an order in which each succeeds."""
    operation = {"operation_id": uuid.uuid4()}
    return {
        "store_data": ((b"data", bdr.BinaryDataMetadata(labels={"node": "n"})), operation),
        "store_stream": ((chunks(b"da", b"ta"),), {}),
        "store_file": ((path,), {}),
        "store_many": (([(b"data", None)],), {}),
        "get_data": ((key,), {}),
        "get_range": ((key, 0, 2), {}),
        "open": ((key,), {}),
        "register_reference": ((key,), {"holder": "node", "lease": timedelta(hours=1), "bound": True}),
        "register_many": (([key],), {}),
        "release_many": (([key],), {}),
        "delete_many": ((["0" * 26],), {}),
        "get_holders": ((key,), {}),
        "get_held": (("node",), {}),
        "release_holder": (("node",), {}),
        "pin": ((key,), {}),
        "unpin": ((key,), {}),
        "explain": ((key,), {}),
        "data_exists": ((key,), {}),
        "get_metadata": ((key,), {}),
        "get_reference": ((key,), {}),
        "get_details": ((key,), {}),
        "list_references": ((), {}),
        "get_operation_progress": ((operation["operation_id"],), {}),
        "get_stats": ((), {}),
        "release_reference": ((key,), {}),
        "cleanup_data": ((key,), {}),
        "start_cleanup_task": ((), {}),
        "stop_cleanup_task": ((), {}),
        "reap": ((), {"confirmed": True}),
        "cleanup_completed_operations": ((0,), {}),
    }


async def test_an_engine_can_call_every_verb(storing: bdr.BinaryDataLifecycleManager, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    key = (await storing.store_data(b"held")).file_key
    await storing.delete_data((await storing.store_data(b"deleted")).file_key)
    called = verbs(key, path)
    public = {name for name, _ in inspect.getmembers(storing, callable) if not name.startswith("_")}
    assert public - {"delete_data", "delete"} == called.keys()
    for name, (arguments, options) in called.items():
        call = getattr(storing, name)(*arguments, **options)
        if name == "open":
            async with call as reader:
                assert await reader.read() == b"held"
        else:
            done = await call
            # Those on many raise nothing of one.
            assert not isinstance(done, bdr.BatchResult) or not [one for one in done.failed if name != "delete_many"]


async def test_an_engine_hears_what_another_deletes(catalog_url: str, fs_config: bdr.BinaryStorageConfig) -> None:
    url = acting_as(catalog_url, ENGINE)
    async with bdr.connect(url, fs_config) as binary, bdr.connect(url, fs_config) as other:

        async def listens() -> bool:
            return binary.engine.locations.mark() is not None

        await until(listens)
        key = (await binary.store_data(b"hello")).file_key
        await other.delete_data(key)
        await until_gone(binary, key)


async def test_an_engine_reaps_what_is_due_in_every_state(catalog_url: str, fs_config: bdr.BinaryStorageConfig) -> None:
    url = acting_as(catalog_url, ENGINE)
    at_once = bdr.LifecycleCleanupConfig(max_retention=AT_ONCE)
    pruning = bdr.OperationsConfig(retention=AT_ONCE)
    memory = {"memory": bdr.BinaryStorageConfig(storage_type="memory")}
    async with bdr.connect(url, storages={"main": fs_config} | memory, lifecycle=at_once, operations=pruning) as binary:
        for _ in range(2):
            await binary.store_data(b"expired")
        held = await binary.store_data(b"held")
        await binary.register_reference(held.file_key, holder="node", lease=timedelta(milliseconds=1))
        await binary.operations.flush()
        report = await binary.reap(confirmed=True)
    assert (report.references, report.blobs, report.trouble) == (3, 3, None)
    assert report.pruned > 0


async def test_an_engine_checks_and_repairs(
    storing: bdr.BinaryDataLifecycleManager, fs_config: bdr.BinaryStorageConfig, tmp_path: Path
) -> None:
    key = (await storing.store_data(b"lost")).file_key
    place = (await storing.get_details(key)).object_path
    storage = await open_storage(fs_config, name="main")
    await storage.delete(place)
    await storage.store("00/nobodys", b"nobody's")
    await storage.close()
    plan = tmp_path / "plan"
    found = await fsck.check(storing, plan)
    assert not found.is_clean
    repaired = await fsck.repair(storing, plan)
    assert (repaired.count(fsck.Result.REPAIRED), repaired.references) == (2, 1)
    assert not await storing.data_exists(key)


@pytest.mark.parametrize("user", [ENGINE, AUDITOR])
async def test_neither_engine_nor_auditor_changes_the_schema(catalog_url: str, user: str) -> None:
    url = acting_as(catalog_url, user)
    assert [one for one in CHANGES_OF_THE_SCHEMA if not await refused(url, one)] == []


async def test_an_auditor_reads_every_table_and_view_and_writes_to_none(catalog_url: str) -> None:
    url = acting_as(catalog_url, AUDITOR)
    found = await surface(url)
    assert {"blob", "binary_data_reference", "reference_holder", "operation", "usage", "held_longest"} <= found.keys()
    connection = await asyncpg.connect(url)
    try:
        for name in found:
            await connection.fetch(f"SELECT * FROM bdr.{name} LIMIT 1")
    finally:
        await connection.close()
    tables = [name for name, kind in found.items() if kind == "r"]
    writing = [statement.format(table=table) for table in tables for statement in WRITING]
    writing += ["UPDATE bdr.binary_data_reference SET ref_count = 0", "SELECT FROM bdr.blob FOR UPDATE"]
    assert [one for one in writing if not await refused(url, one)] == []


async def test_an_auditor_reads_nothing_but_the_catalog(catalog_url: str) -> None:
    connection = await asyncpg.connect(catalog_url)
    try:
        await connection.execute("CREATE TABLE public.users (password text); CREATE SCHEMA hr CREATE TABLE pay (n int)")
        executable = await connection.fetch("""
            SELECT oid::regprocedure::text FROM pg_proc
            WHERE pronamespace = 'bdr'::regnamespace AND has_function_privilege('bdr_auditor', oid, 'EXECUTE')
        """)
    finally:
        await connection.close()
    assert executable == []
    url = acting_as(catalog_url, AUDITOR)
    for statement in ("TABLE public.users", "TABLE hr.pay", "TABLE pg_authid"):
        assert await refused(url, statement), statement


async def test_an_auditor_who_would_be_an_engine_is_told_so(
    catalog_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    with pytest.raises(bdr.PermissionDenied, match="does not allow this user to do that"):
        await bdr.connect(acting_as(catalog_url, AUDITOR), fs_config).__aenter__()


async def test_the_owner_migrates_back_and_forth(catalog_url: str) -> None:
    await migrate.downgrade(as_owner(catalog_url), "base")
    await migrate.upgrade(as_owner(catalog_url))
    connection = await asyncpg.connect(catalog_url)
    try:
        owners = await connection.fetch("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'bdr'")
    finally:
        await connection.close()
    assert [row["tableowner"] for row in owners] == ["bdr_owner"]


async def test_what_a_later_migration_makes_is_granted_as_well(catalog_url: str) -> None:
    connection = await asyncpg.connect(as_owner(catalog_url))
    try:
        await connection.execute(
            "CREATE TABLE bdr.later (n int); CREATE VIEW bdr.latest AS SELECT max(n) FROM bdr.later"
        )
    finally:
        await connection.close()
    engine, auditor = acting_as(catalog_url, ENGINE), acting_as(catalog_url, AUDITOR)
    for statement in ("INSERT INTO bdr.later VALUES (1)", "UPDATE bdr.later SET n = 2", "DELETE FROM bdr.later"):
        assert not await refused(engine, statement), statement
        assert await refused(auditor, statement), statement
    for statement in ("TABLE bdr.later", "TABLE bdr.latest"):
        assert not await refused(auditor, statement), statement
