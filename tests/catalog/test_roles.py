"""The roles of docs/operations.md, as they are written there: each may do its work and nothing else."""

import re
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

import bdr
from bdr.catalog import migrate
from bdr.catalog.database import Database
from bdr.settings import DatabaseConfig
from tests.fixtures.postgres import PostgresServer

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
ROLES = ("bdr_owner", "bdr_engine", "bdr_auditor")
CREATE = "CREATE TABLE bdr.more (n int)"
ALTER = "ALTER TABLE bdr.blob ADD COLUMN more int"
TRUNCATE = "TRUNCATE bdr.operation"
EVERYTHING = """
    SELECT oid::regclass::text AS name FROM pg_class
    WHERE relnamespace = 'bdr'::regnamespace AND relkind IN ('r', 'v', 'm')
"""
WRITE = "UPDATE bdr.catalog SET created_at = now()"


def documented_sql() -> str:
    found = re.search(r"-- roles: begin\n(.*?)-- roles: end", PAGE.read_text(), re.DOTALL)
    assert found, "the page has lost its SQL"
    return found[1]


def acting_as(url: str, role: str) -> str:
    return f"{url}?options=-c%20role%3D{role}"


@pytest.fixture
async def catalog_url(private_postgres: PostgresServer) -> str:
    """A database whose catalog was made by `bdr_owner`; roles belong to a whole server, so it has one of its own."""
    name = await private_postgres.create_database()
    await private_postgres.execute(documented_sql(), name)
    url = private_postgres.url(name)
    await migrate.upgrade(acting_as(url, "bdr_owner"))
    return url


async def refused(url: str, role: str, statement: str) -> bool:
    connection = await asyncpg.connect(url, server_settings={"role": role})
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        await connection.close()
    return False


async def test_an_engine_can_do_all_of_its_work_but_change_no_table(
    catalog_url: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    url = acting_as(catalog_url, "bdr_engine")
    async with bdr.connect(url, fs_config) as binary:
        held = await binary.store_data(b"held")
        await binary.register_reference(held.file_key)
        await binary.release_reference(held.file_key)
        assert await binary.get_data(held.file_key) == b"held"
        await binary.delete_data((await binary.store_data(b"deleted")).file_key)
        await binary.reap()
        await binary.cleanup_completed_operations(0)
    for statement in (CREATE, ALTER, TRUNCATE, "CREATE SCHEMA more"):
        assert await refused(catalog_url, "bdr_engine", statement), statement


async def test_an_auditor_reads_every_table_and_view_and_changes_nothing(catalog_url: str) -> None:
    connection = await asyncpg.connect(catalog_url, server_settings={"role": "bdr_auditor"})
    try:
        found = await connection.fetch(EVERYTHING)
        assert len(found) > 10
        for row in found:
            await connection.fetch(f"SELECT * FROM {row['name']} LIMIT 1")
    finally:
        await connection.close()
    for statement in (
        CREATE,
        ALTER,
        TRUNCATE,
        WRITE,
        "DELETE FROM bdr.blob",
        "INSERT INTO bdr.storage VALUES ('a', 'b', 'c')",
    ):
        assert await refused(catalog_url, "bdr_auditor", statement), statement


async def test_the_owner_migrates_back_and_forth(catalog_url: str) -> None:
    url = acting_as(catalog_url, "bdr_owner")
    await migrate.downgrade(url, "base")
    await migrate.upgrade(url)
    database = Database(url, config=DatabaseConfig(), application_name="bdr tests")
    try:
        async with database.reading() as connection:
            owners = await connection.execute(
                text("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'bdr'")
            )
            assert list(owners.scalars()) == ["bdr_owner"]
    finally:
        await database.close()
