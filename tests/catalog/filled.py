"""A catalog as it looks after weeks of use, made in SQL: most rows live and unexpired, a few of every other kind."""

import os
import uuid
from datetime import UTC, datetime
from typing import Final

import asyncpg

# As many as leave little doubt and are quickly made. With CATALOG_REFERENCES=1000000 in the environment there are so
# many; the guards hold then too (docs/performance.md).
REFERENCES: Final = int(os.environ.get("CATALOG_REFERENCES", "60000"))
# References, at least, in the memory of each engine that has stopped.
IN_ONE_MEMORY: Final = REFERENCES // 15_000
# Where the planner rightly finds other ways.
LARGE: Final = REFERENCES >= 1_000_000
OPERATIONS: Final = REFERENCES
ENGINES: Final = 200
# Three to share, and the memory of every tenth engine.
STORAGES: Final = 3 + ENGINES // 10
# Every command of a command line is an instance that has stopped.
INSTANCES: Final = 5_000
# The blobs come in this order; references beyond the last live one share the blobs of the first.
LIVE: Final = REFERENCES - 1_000
PENDING: Final = 400
DELETING: Final = 1_000
QUARANTINED: Final = 100
# The oldest references.
EXPIRED: Final = 300
# Some of the held ones are held by name too: one in three of those bound to an engine, one in three with a lease.
BINDING_ENGINES: Final = 20
NAMED_BY_EACH: Final = 20
# Machines that have reaped, by their boots.
CLOCKS: Final = 1_000
# Every second is claimed until then, beginning with the first; the others are overdue.
FIRST_DELETING: Final = LIVE + PENDING + 1
CLAIMED_UNTIL: Final = datetime(2100, 1, 1, tzinfo=UTC)

_BLOB, _INSTANCE, _OPERATION = "7001", "7002", "7003"


def blob(number: int) -> uuid.UUID:
    """The id of a blob; as with UUIDv7, higher numbers sort later."""
    return _id(_BLOB, number)


def instance(number: int) -> uuid.UUID:
    """The id of an instance: up to ENGINES they run, but for every tenth."""
    return _id(_INSTANCE, number)


def operation(number: int) -> uuid.UUID:
    """The id of an operation record; every 301st is running."""
    return _id(_OPERATION, number)


def file_key(number: int) -> str:
    """The key of a reference; higher numbers are newer."""
    return f"{number:026d}"


def holder(number: int) -> str:
    """The name of a holder."""
    return f"execution-{number}"


def held_by(number: int) -> list[str]:
    """The keys that a holder holds."""
    some = range(_SPAN * number, _SPAN * (number + 1))
    return [file_key(one) for one in some if one % 7 == 4 and one % 5 > 0]


def _id(kind: str, number: int) -> uuid.UUID:
    return uuid.UUID(f"01900000-0000-{kind}-8000-{number:012x}")


def _ids(kind: str, number: str) -> str:
    return f"('01900000-0000-{kind}-8000-' || lpad(to_hex({number}), 12, '0'))::uuid"


# One in 600 lies in the memory of an engine that has stopped.
_STORAGE: Final = """
CASE WHEN i % 600 = 0 THEN 'memory-' || 10 * (1 + i / 600 % 20)
    ELSE (ARRAY['main', 'main', 'main', 'archive', 'archive', 'offline'])[1 + i % 6] END
"""
_ANYONE: Final = _ids(_INSTANCE, f"1 + i % {ENGINES}")

_STORAGES: Final = f"""
INSERT INTO bdr.storage (name, storage_type, root, fingerprint, instance_id, marked_at)
SELECT name, 'fs', '/' || name, name, NULL::uuid, now() FROM unnest(ARRAY['main', 'archive', 'offline']) name
UNION ALL
SELECT 'memory-' || i, 'memory', '', 'memory-' || i, {_ids(_INSTANCE, "i")}, now()
FROM generate_series(10, {ENGINES}, 10) i
"""
_INSTANCES: Final = f"""
INSERT INTO bdr.engine_instance (instance_id, name, host, pid, version, started_at, heartbeat_at, stopped_at)
SELECT {_ids(_INSTANCE, "i")}, 'engine-' || i, 'host-' || i % 20, i, '0.1.0', now() - interval '30 days',
    now() - CASE WHEN i <= {ENGINES} AND i % 40 = 1 THEN interval '1 hour' ELSE interval '5 s' END,
    CASE WHEN i > {ENGINES} OR i % 10 = 0 THEN now() END
FROM generate_series(1, {INSTANCES}) i
"""
_LIVE: Final = f"""
INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, checksum, created_at, instance_id)
SELECT {_ids(_BLOB, "i")}, {_STORAGE}, 'live/' || i, 'live', 1000, sha256(i::text::bytea),
    now() - interval '30 days' * (1 - i::float / {LIVE}), {_ANYONE}
FROM generate_series(1, {LIVE}) i
"""
# Of the deleting, every fifth has failed before.
_UNFINISHED: Final = f"""
INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, instance_id, attempts, next_attempt_at,
    last_error)
SELECT {_ids(_BLOB, f"{LIVE} + i")}, {_STORAGE}, 'unfinished/' || i,
    CASE WHEN i <= {PENDING} THEN 'pending' ELSE 'deleting' END, CASE WHEN i > {PENDING} THEN 1000 END, {_ANYONE},
    CASE WHEN i <= {PENDING} THEN 0 WHEN i % 5 = 0 THEN 2 ELSE i % 2 END,
    CASE WHEN i % 2 = 0 THEN now() - interval '1 s' * i ELSE '{CLAIMED_UNTIL.isoformat()}' END,
    CASE WHEN i > {PENDING} AND i % 5 = 0 THEN 'permission denied' END
FROM generate_series(1, {PENDING + DELETING}) i
"""
_QUARANTINED: Final = f"""
INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, size, instance_id, attempts, last_error)
SELECT {_ids(_BLOB, f"{LIVE + PENDING + DELETING} + i")}, {_STORAGE}, 'quarantined/' || i, 'quarantined', 1000,
    {_ANYONE}, 8, 'permission denied'
FROM generate_series(1, {QUARANTINED}) i
"""
_NAMED: Final = f"i > {EXPIRED} AND i % 7 = 4 AND i % 5 > 0"
_SPAN: Final = 35 * NAMED_BY_EACH // 4
# One in five is not held, one in a hundred pinned; of a thousand namespaces one has few.
_REFERENCES: Final = f"""
INSERT INTO bdr.binary_data_reference (file_key, blob_id, namespace, mime_kind, file_size, file_name, file_kind,
    file_extension, labels, ref_count, holder_count, pinned, created_at, last_access_at, zero_ref_retention,
    max_retention)
SELECT lpad(i::text, 26, '0'), {_ids(_BLOB, f"1 + (i - 1) % {LIVE}")},
    CASE WHEN i % 6000 = 0 THEN 'small' ELSE 'team-' || i % 10 END, 'application/pdf', 1000, 'report-' || i || '.pdf',
    (ARRAY['pdf', 'image', NULL])[1 + i % 3], 'pdf',
    jsonb_build_object('workflow', 'w' || i % 50, 'execution', i, 'node', 'n' || i % 7),
    CASE WHEN i % 5 = 0 THEN 0 ELSE 1 + i % 3 END + CASE WHEN {_NAMED} THEN 1 ELSE 0 END,
    CASE WHEN {_NAMED} THEN 1 ELSE 0 END, i > {EXPIRED} AND i % 100 = 0, made, made, interval '90 days',
    CASE WHEN i <= {EXPIRED} THEN interval '1 day' ELSE interval '365 days' END
FROM generate_series(1, {REFERENCES}) i,
    LATERAL (SELECT now() - interval '30 days' * (1 - i::float / {REFERENCES})) AS at (made)
"""
# Some leases are over, and every tenth of the engines has stopped.
_HOLDERS: Final = f"""
INSERT INTO bdr.reference_holder (file_key, holder, instance_id, lease_expires_at)
SELECT lpad(i::text, 26, '0'), 'execution-' || i / {_SPAN},
    CASE WHEN i % 3 = 1 THEN {_ids(_INSTANCE, f"1 + i / 7 % {BINDING_ENGINES}")} END,
    CASE WHEN i % 3 = 2 THEN now() + CASE WHEN i % 10 = 1 THEN interval '-1 hour' ELSE interval '1 hour' END END
FROM generate_series(1, {REFERENCES}) i WHERE {_NAMED}
"""
_CLOCKS: Final = f"""
INSERT INTO bdr.reaper_clock (boot_id, seen_at, uptime)
SELECT 'boot-' || i, now() - interval '1 hour' * (i % 48), interval '1 day' FROM generate_series(1, {CLOCKS}) i
"""
_OPERATIONS: Final = f"""
INSERT INTO bdr.operation (operation_id, operation_type, file_key, namespace, instance_id, total_bytes,
    processed_bytes, status, detail, started_at, updated_at, finished_at)
SELECT {_ids(_OPERATION, "i")}, (ARRAY['store', 'retrieve', 'retrieve', 'delete', 'reap'])[1 + i % 5],
    lpad(i::text, 26, '0'), 'team-' || i % 10, {_ANYONE}, 1000, 1000,
    CASE WHEN i % 301 = 0 THEN 'running' WHEN i % 20 = 0 THEN 'failed' ELSE 'succeeded' END,
    CASE WHEN i % 5 = 4 THEN jsonb_build_object('rule', 'max_retention') END,
    began, began, CASE WHEN i % 301 > 0 THEN began END
FROM generate_series(1, {OPERATIONS}) i,
    LATERAL (SELECT now() - interval '30 days' * (1 - i::float / {OPERATIONS})) AS at (began)
"""
_TOTALS: Final = f"""
INSERT INTO bdr.operation_total (day, instance_id, operation_type, status, operations, bytes)
SELECT current_date - 30 - day, {_ids(_INSTANCE, "i")}, operation_type, 'succeeded', 100, 100000
FROM generate_series(1, 30) day, generate_series(1, {ENGINES}) i,
    unnest(ARRAY['store', 'retrieve', 'delete', 'reap']) operation_type
"""


async def fill(connection: asyncpg.Connection) -> None:
    """Fill an empty, migrated catalog, and let the planner know what is in it."""
    blobs = (_LIVE, _UNFINISHED, _QUARANTINED)
    made = (_STORAGES, _INSTANCES, *blobs, _REFERENCES, _HOLDERS, _CLOCKS, _OPERATIONS, _TOTALS)
    for statement in made:
        await connection.execute(statement)
    await connection.execute("VACUUM ANALYZE")
