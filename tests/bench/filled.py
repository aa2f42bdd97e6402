"""Catalogs filled in SQL, as stores would have filled them, and the objects that belong to them."""

import asyncio
from pathlib import Path
from typing import Final

import asyncpg

from tests.bench.ground import SMALL, Catalog

HELD: Final = 0
EXPIRED: Final = 1
_BATCH: Final = 500_000
# Rows of both kinds with the same number are neighbours.
_BLOB_ID: Final = "('01900000-0000-7000-8000-' || lpad(to_hex(i * 2 + $1::int), 12, '0'))::uuid"
_KEY: Final = "lpad(i::text, 25, '0') || $1::int"
_PATH: Final = f"lpad(to_hex(i % 256), 2, '0') || '/' || {_KEY}"
_NUMBERS: Final = "generate_series($2::bigint, $3::bigint, $4::bigint) i"
_BLOBS: Final = f"""
INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, checksum, instance_id)
SELECT {_BLOB_ID}, 'main', {_PATH}, 'live', {len(SMALL)}, sha256(i::text::bytea),
    '01900000-0000-7000-8000-000000000000'
FROM {_NUMBERS}
"""
_REFERENCES: Final = f"""
INSERT INTO bdr.binary_data_reference (file_key, blob_id, mime_kind, file_size, file_name, file_kind, file_extension,
    labels, ref_count, created_at, zero_ref_retention, max_retention)
SELECT {_KEY}, {_BLOB_ID}, 'application/pdf', {len(SMALL)}, 'report.pdf', 'pdf', 'pdf',
    jsonb_build_object('workflow', 'w' || i % 50, 'execution', i, 'node', 'n' || i % 7), 1,
    now() - CASE WHEN $1::int = {EXPIRED} THEN interval '8 days' ELSE interval '0' END, interval '1 hour',
    interval '7 days'
FROM {_NUMBERS}
"""


def key(kind: int, number: int) -> str:
    """The key of a reference."""
    return f"{number:025d}{kind}"


def path(kind: int, number: int) -> str:
    """Where its object lies below the root: in one of 256 folders, as bdr's own do."""
    return f"{number % 256:02x}/{key(kind, number)}"


async def introduce(catalog: Catalog) -> None:
    """Let the catalog know its storage."""
    async with catalog.connect():
        pass


async def fill(catalog: Catalog, kind: int, numbers: range) -> None:
    """Make references of a kind, and their blobs; large numbers of them over two connections."""
    parts = [numbers[start : start + _BATCH] for start in range(0, len(numbers), _BATCH)]
    async with asyncpg.create_pool(catalog.url, min_size=0, max_size=2) as pool:

        async def make(part: range) -> None:
            async with pool.acquire() as connection, connection.transaction():
                # Nobody else is there: what the rows point at was made just before them.
                await connection.execute("SET LOCAL session_replication_role = replica")
                for statement in (_BLOBS, _REFERENCES):
                    await connection.execute(statement, kind, part[0], part[-1], part.step)

        await asyncio.gather(*map(make, parts))


async def settle(catalog: Catalog) -> None:
    """Clean up after a fill, and let the planner know what is there."""
    await catalog.execute("VACUUM ANALYZE bdr.blob", "VACUUM ANALYZE bdr.binary_data_reference", "CHECKPOINT")


def lay_objects(root: Path, kind: int, numbers: range) -> None:
    """Write the objects of references that `fill` makes; not synced, as they are there to be deleted."""
    for folder in range(256):
        (root / f"{folder:02x}").mkdir(exist_ok=True)
    for number in numbers:
        (root / path(kind, number)).write_bytes(SMALL)
