"""The statements of a check read a part of the catalog, however large the rest is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import inventory
from tests.catalog.filled import LARGE, REFERENCES
from tests.catalog.plans import MODES, Plan, plan_of, sent_by
from tests.fixtures.postgres import PostgresServer

BLOBS = REFERENCES
BATCH = 100
# In a large catalog a plan for any batch is one for many processes that read ahead. The server does not take it,
# because it expects it to cost more than planning for each.
PLANNED_EACH_TIME = {"of_counts"} if LARGE else set()
_FILL = (
    """
    INSERT INTO bdr.storage (name, storage_type, root, fingerprint)
    VALUES ('main', 'fs', '/main', 'main'), ('b', 'fs', '/b', 'b')
    """,
    f"""
    INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, checksum, instance_id)
    SELECT md5(i::text)::uuid, CASE WHEN i % 4 = 0 THEN 'b' ELSE 'main' END,
        right(md5(i::text), 2) || '/' || left(md5(i::text), 26), 'live', i, sha256(i::text::bytea), gen_random_uuid()
    FROM generate_series(1, {BLOBS}) i
    """,
    f"""
    INSERT INTO bdr.binary_data_reference (file_key, blob_id, mime_kind, file_size, ref_count)
    SELECT lpad(i::text, 26, '0'), md5(i::text)::uuid, 'text/plain', i, 1 FROM generate_series(1, {BLOBS}) i
    """,
    f"""
    INSERT INTO bdr.reference_holder (file_key, holder)
    SELECT lpad(i::text, 26, '0'), 'execution-' || i % 50 FROM generate_series(1, {BLOBS}, 2) i
    """,
    "VACUUM ANALYZE",
)
Work = Callable[[AsyncConnection], Awaitable[Any]]


@pytest.fixture(scope="module")
async def filled(postgres: PostgresServer, template_database: str) -> AsyncIterator[str]:
    """A catalog with many blobs in all folders."""
    name = await postgres.create_database(template_database)
    connection = await asyncpg.connect(postgres.url(name))
    for statement in _FILL:
        await connection.execute(statement)
    await connection.close()
    yield postgres.url(name)
    await postgres.drop_database(name)


async def plans(url: str, work: Work) -> list[list[Plan]]:
    """How the server runs each statement of `work`, in each mode."""
    sent = await sent_by(url, work)
    connection = await asyncpg.connect(url)
    try:
        return [[await plan_of(connection, one, mode) for mode in MODES] for one in sent]
    finally:
        await connection.close()


async def of_a_folder(connection: AsyncConnection) -> None:
    assert len(await inventory.live(connection, "main", "80/", "81/", BATCH)) == BATCH


async def of_the_last_folder(connection: AsyncConnection) -> None:
    assert len(await inventory.live(connection, "main", "ff/", None, BATCH)) == BATCH


async def of_paths(connection: AsyncConnection) -> None:
    rows = await inventory.live(connection, "main", "80/", "81/", BATCH)
    assert len(await inventory.owners(connection, "main", [row.path for row in rows])) == BATCH


async def of_references(connection: AsyncConnection) -> None:
    rows = await inventory.live(connection, "main", "80/", "81/", BATCH)
    owners = await inventory.owners(connection, "main", [row.path for row in rows])
    assert len(await inventory.references(connection, [one.blob_id for one in owners.values()])) == BATCH


async def of_counts(connection: AsyncConnection) -> None:
    assert len(await inventory.counts(connection, f"{BLOBS // 2:026}", BATCH)) == BATCH


async def of_a_repair(connection: AsyncConnection) -> None:
    rows = await inventory.live(connection, "main", "80/", "81/", BATCH)
    owners = await inventory.owners(connection, "main", [row.path for row in rows])
    ids = [one.blob_id for one in owners.values()]
    deleted, turned = await inventory.retire(connection, ids[: BATCH // 2], quarantined_because=None)
    assert (len(deleted), len(turned)) == (BATCH // 2, BATCH // 2)
    deleted, turned = await inventory.retire(connection, ids[BATCH // 2 :], quarantined_because="lost")
    assert (len(deleted), len(turned)) == (BATCH // 2, BATCH // 2)


async def of_corrections(connection: AsyncConnection) -> None:
    await inventory.correct(connection, [f"{number:026}" for number in range(BATCH)])


@pytest.mark.parametrize(
    "work", [of_a_folder, of_the_last_folder, of_paths, of_references, of_counts, of_a_repair, of_corrections]
)
async def test_no_statement_reads_more_than_its_batch(filled: str, work: Work) -> None:
    for custom, generic in await plans(filled, work):
        require(custom)
        if work.__name__ in PLANNED_EACH_TIME:
            assert generic.cost > 2 * custom.cost
        else:
            require(generic)


def require(plan: Plan) -> None:
    assert plan.scanned == frozenset(), plan.text
    assert plan.rows <= 4 * BATCH, plan.text
    assert plan.buffers <= 60 * BATCH, plan.text


async def test_every_live_blob_is_in_one_of_the_ranges_whatever_its_path(filled: str) -> None:
    async def count(connection: AsyncConnection) -> None:
        bounds = ["", *(f"{number:02x}/" for number in range(1, 256)), None]
        found = [
            await inventory.live(connection, storage, after or "", until, BLOBS)
            for storage in ("main", "b")
            for after, until in pairwise(bounds)
        ]
        assert sum(map(len, found)) == BLOBS

    await sent_by(filled, count)
