"""The audit views: each against a few rows whose answer is known, in one transaction, where `now()` stands still."""

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bdr.catalog import migrate
from bdr.catalog.expiry import CLAIM_EXPIRED
from tests.catalog.test_migrations import run_script

pytestmark = pytest.mark.both_majors

VIEWS: Final = ["expiring_soon", "held_longest", "reaper_backlog", "stuck_blob", "usage"]
BEFORE_THEM: Final = "b857072cdbad"
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
ENGINE: Final = uuid.UUID(int=1)

DEFINITIONS: Final = """
SELECT c.relname, pg_get_viewdef(c.oid), c.reloptions, obj_description(c.oid),
    array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || col_description(c.oid, a.attnum)
        ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'bdr'::regnamespace AND c.relkind = 'v'
GROUP BY c.oid, c.relname, c.reloptions ORDER BY c.relname
"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A transaction on a catalog of two storages and one engine; it is rolled back."""
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.connect() as connection:
        for name in ("main", "archive"):
            await insert(connection, "storage", name=name, storage_type="fs", root=f"/{name}", fingerprint=name)
        await insert(connection, "engine_instance", instance_id=ENGINE, name="e1", host="h", pid=1, version="0.1.0")
        yield connection
        await connection.rollback()
    await engine.dispose()


async def insert(connection: AsyncConnection, table: str, **row: Any) -> None:
    """Insert one row; intervals for moments are counted from now on."""
    values = {
        name: f"now() + :{name}" if isinstance(value, timedelta) and name.endswith("_at") else f":{name}"
        for name, value in row.items()
    }
    statement = f"INSERT INTO bdr.{table} ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    await connection.execute(text(statement), row)


async def make_blob(connection: AsyncConnection, number: int, storage: str = "main", **other: Any) -> None:
    """A live blob of 100 bytes, unless told otherwise."""
    live = {"state": "live", "size": 100, "checksum": bytes(32), "instance_id": ENGINE}
    place = {"blob_id": uuid.UUID(int=number), "storage_name": storage, "object_path": f"p{number}"}
    await insert(connection, "blob", **(place | live | other))


async def make_reference(connection: AsyncConnection, file_key: str, blob: int, **other: Any) -> None:
    """A held reference that never expires, unless told otherwise."""
    held = {"mime_kind": "x/y", "file_size": 100, "ref_count": 1, "file_kind": "pdf", "namespace": "a"}
    await insert(connection, "binary_data_reference", file_key=file_key, blob_id=uuid.UUID(int=blob), **(held | other))


async def rows(connection: AsyncConnection, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.execute(text(query))]


async def test_usage_counts_a_shared_blob_once_in_the_row_of_its_oldest_reference(connection: AsyncConnection) -> None:
    await make_blob(connection, 1)
    await make_blob(connection, 2, "archive", size=50)
    await make_blob(connection, 3, state="pending", size=None, checksum=None, next_attempt_at=HOUR)
    await make_reference(connection, "k1", 1)
    await make_reference(connection, "k2", 1, ref_count=0)
    await make_reference(connection, "k3", 1, namespace="b")
    await make_reference(connection, "k4", 2, file_size=50, file_kind=None)
    usage = "SELECT * FROM bdr.usage ORDER BY namespace, storage_name"
    assert await rows(connection, usage) == [
        ("a", "archive", None, 1, 1, 50, 1, 50),
        ("a", "main", "pdf", 2, 1, 200, 1, 100),
        ("b", "main", "pdf", 1, 1, 100, 0, 0),
    ]
    assert await rows(connection, f"SELECT * FROM ({usage}) u WHERE namespace = 'b'") == [
        ("b", "main", "pdf", 1, 1, 100, 0, 0)
    ]
    await connection.execute(text("DELETE FROM bdr.binary_data_reference WHERE file_key IN ('k1', 'k2')"))
    assert (await rows(connection, usage))[1:] == [("b", "main", "pdf", 1, 1, 100, 1, 100)]


async def test_usage_adds_up_to_what_live_blobs_take_up(connection: AsyncConnection) -> None:
    for number in range(1, 8):
        await make_blob(connection, number, "main" if number % 2 else "archive", size=10**number)
    for number in range(1, 29):
        kind = ("pdf", "image", None)[number % 3]
        await make_reference(connection, f"k{number}", 1 + number % 7, namespace="ab"[number % 2], file_kind=kind)
    added = await rows(connection, "SELECT sum(reference_count), sum(blob_count), sum(stored_bytes) FROM bdr.usage")
    assert added == await rows(connection, "SELECT 28, count(*), sum(size) FROM bdr.blob")


async def test_held_longest_shows_what_is_held_with_its_age_its_labels_and_its_engine(
    connection: AsyncConnection,
) -> None:
    await make_blob(connection, 1)
    await make_blob(connection, 2, instance_id=uuid.UUID(int=9))
    await make_reference(connection, "k2", 2, created_at=-2 * DAY, last_access_at=-HOUR, max_retention=7 * DAY)
    await make_reference(connection, "k1", 1, created_at=-3 * DAY, ref_count=2, labels='{"node": "n"}')
    await make_reference(connection, "k0", 1, created_at=-9 * DAY, ref_count=0)
    shown = """
        SELECT file_key, ref_count, age, now() - last_access_at, expires_at - now(), instance_name, labels
        FROM bdr.held_longest ORDER BY file_key
    """
    assert await rows(connection, shown) == [
        ("k1", 2, 3 * DAY, timedelta(0), None, "e1", {"node": "n"}),
        ("k2", 1, 2 * DAY, HOUR, 5 * DAY, None, {}),
    ]


async def make_expiring(connection: AsyncConnection) -> None:
    await make_blob(connection, 1)
    given: dict[str, dict[str, Any]] = {
        "by-age": {"created_at": -200 * DAY, "max_retention": 201 * DAY},
        "by-age-unheld": {"ref_count": 0, "max_retention": 2 * DAY, "zero_ref_retention": 3 * DAY},
        "both": {"ref_count": 0, "max_retention": 3 * DAY, "zero_ref_retention": 3 * DAY},
        "unheld": {"ref_count": 0, "last_access_at": -200 * DAY, "zero_ref_retention": 204 * DAY},
        "expired": {"created_at": -2 * DAY, "max_retention": DAY},
        "pinned": {"pinned": True, "max_retention": DAY},
        "kept": {"created_at": -DAY, "max_retention": 2 * DAY, "held_at_max_retention": "keep"},
        "for-ever": {"ref_count": 0},
    }
    for file_key, other in given.items():
        await make_reference(connection, file_key, 1, **other)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
async def test_expiring_soon_shows_when_and_by_which_rule_in_every_time_zone(
    connection: AsyncConnection, zone: str
) -> None:
    await make_expiring(connection)
    await connection.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
    assert await rows(connection, "SELECT file_key, expires_in, rule FROM bdr.expiring_soon ORDER BY expires_at") == [
        ("by-age", DAY, "max_retention"),
        ("by-age-unheld", 2 * DAY, "max_retention"),
        ("both", 3 * DAY, "max_retention"),
        ("unheld", 4 * DAY, "zero_ref_retention"),
    ]


async def test_the_rule_shown_is_the_rule_a_reaper_writes_down(connection: AsyncConnection) -> None:
    await make_expiring(connection)
    await connection.execute(text("DELETE FROM bdr.binary_data_reference WHERE expires_at <= now()"))
    shown = await rows(connection, "SELECT file_key, rule FROM bdr.expiring_soon")
    # The same as waiting: each reference is moved into the past by just as much as it had left.
    moved = "created_at = created_at - (expires_at - now()), last_access_at = last_access_at - (expires_at - now())"
    await connection.execute(text(f"UPDATE bdr.binary_data_reference SET {moved} WHERE expires_at IS NOT NULL"))
    claimed = await connection.execute(CLAIM_EXPIRED, {"storage": "main", "batch": 100, "since": None})
    assert sorted((row.file_key, row.rule) for row in claimed) == sorted(shown)


async def test_the_backlog_is_what_is_due_by_storage_and_state(connection: AsyncConnection) -> None:
    for number in (1, 2):
        await make_blob(connection, number)
    expired = {"created_at": -2 * DAY, "max_retention": DAY}
    await make_reference(connection, "k1", 1, **expired)
    await make_reference(connection, "k2", 1, **(expired | {"created_at": -3 * DAY}))
    # The other reference of this one's blob has not expired, so its bytes stay.
    await make_reference(connection, "k3", 2, **expired)
    await make_reference(connection, "k4", 2)
    unfinished: dict[str, Any] = {"checksum": None, "size": None}
    await make_blob(connection, 3, **unfinished, state="pending", next_attempt_at=-HOUR)
    await make_blob(connection, 4, **unfinished, state="pending", next_attempt_at=HOUR)
    await make_blob(connection, 5, **unfinished, state="deleting", next_attempt_at=-2 * HOUR)
    await make_blob(connection, 6, state="deleting", next_attempt_at=-HOUR)
    await make_blob(connection, 7, "archive", state="deleting", next_attempt_at=timedelta(0))
    await make_blob(connection, 8, "archive", state="deleting", next_attempt_at=HOUR)
    await make_blob(connection, 9, state="quarantined", attempts=8)
    shown = """
        SELECT storage_name, state, due_count, bytes, overdue_by, now() - overdue_since
        FROM bdr.reaper_backlog ORDER BY 1, 2
    """
    assert await rows(connection, shown) == [
        ("archive", "deleting", 1, 100, timedelta(0), timedelta(0)),
        ("main", "deleting", 2, 100, 2 * HOUR, 2 * HOUR),
        ("main", "expired", 3, 100, 2 * DAY, 2 * DAY),
        ("main", "pending", 1, None, HOUR, HOUR),
    ]


@pytest.mark.parametrize(
    ("shown", "row"),
    [
        (True, {"state": "pending", "next_attempt_at": timedelta(0)}),
        (False, {"state": "pending", "next_attempt_at": HOUR}),
        (False, {"state": "live"}),
        # Just released: not begun yet, however long ago it was due, and begun for the first time.
        (False, {"state": "deleting", "next_attempt_at": -HOUR}),
        (False, {"state": "deleting", "next_attempt_at": HOUR, "attempts": 1}),
        (True, {"state": "deleting", "next_attempt_at": -HOUR, "attempts": 1}),
        (True, {"state": "deleting", "next_attempt_at": HOUR, "attempts": 1, "last_error": "denied"}),
        (True, {"state": "deleting", "next_attempt_at": HOUR, "attempts": 0, "last_error": "unreachable"}),
        (True, {"state": "deleting", "next_attempt_at": HOUR, "attempts": 2}),
        (True, {"state": "quarantined", "attempts": 8, "last_error": "denied"}),
    ],
)
async def test_a_blob_is_stuck_when_something_went_wrong_with_it(
    connection: AsyncConnection, shown: bool, row: dict[str, Any]
) -> None:
    await make_blob(connection, 1, created_at=-DAY, **row)
    found = await rows(
        connection,
        "SELECT blob_id, state, attempts, last_error, next_attempt_at - now(), age, instance_name FROM bdr.stuck_blob",
    )
    expected = (row["state"], row.get("attempts", 0), row.get("last_error"), row.get("next_attempt_at"), DAY, "e1")
    assert found == ([(uuid.UUID(int=1), *expected)] if shown else [])


async def test_an_auditor_who_may_read_only_the_views_reads_all_of_them(connection: AsyncConnection) -> None:
    await make_blob(connection, 1)
    await make_reference(connection, "k1", 1)
    granted = ", ".join(f"bdr.{view}" for view in VIEWS)
    await connection.execute(text("CREATE ROLE only_views"))
    await connection.execute(text("GRANT USAGE ON SCHEMA bdr TO only_views"))
    await connection.execute(text(f"GRANT SELECT ON {granted} TO only_views"))
    await connection.execute(text("SET LOCAL ROLE only_views"))
    found = {view: len(await rows(connection, f"SELECT * FROM bdr.{view}")) for view in VIEWS}
    assert found == dict.fromkeys(VIEWS, 0) | {"usage": 1, "held_longest": 1}
    with pytest.raises(ProgrammingError, match="permission denied for table blob"):
        await rows(connection, "SELECT * FROM bdr.blob")


async def definitions(url: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(DEFINITIONS)]
    finally:
        await connection.close()


async def test_the_views_go_with_their_migration_and_come_back_the_same(
    database_url: str, empty_database_url: str
) -> None:
    made = await definitions(database_url)
    assert [name for name, *_ in made] == VIEWS
    await migrate.downgrade(database_url, BEFORE_THEM)
    assert await definitions(database_url) == []
    await migrate.upgrade(database_url)
    assert await definitions(database_url) == made
    await run_script(empty_database_url, await migrate.upgrade(None, sql=True))
    assert await definitions(empty_database_url) == made
