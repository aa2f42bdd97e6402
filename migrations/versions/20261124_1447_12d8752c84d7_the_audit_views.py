"""The audit views.

Revision ID: 12d8752c84d7
Revises: b857072cdbad
Create Date: 2026-11-24 14:47:29.406821+00:00

They read with their owner's rights (`security_invoker = false`): a role that may select from a view and from nothing
else can be given to an auditor, and never sees object paths of live blobs, checksums or folders. With the invoker's
rights it would need every table that a view reads. What a view leaves out is not secret from who may read it, so it is
no `security_barrier`, which would keep the reader's conditions away from the indexes. All moments are the database's.

A view is changed by dropping and making it again in a later revision.
"""

from dataclasses import dataclass

from alembic import op

revision: str = "12d8752c84d7"
down_revision: str | None = "b857072cdbad"
branch_labels: None = None
depends_on: None = None

SCHEMA = "bdr"


@dataclass(frozen=True)
class View:
    """A view to make: its query, what it answers, and what each of its columns says, in the query's order."""

    name: str
    query: str
    comment: str
    columns: dict[str, str]


USAGE = View(
    "usage",
    """
    SELECT r.namespace, b.storage_name, r.file_kind,
        count(*) AS reference_count,
        count(*) FILTER (WHERE r.ref_count > 0) AS held_count,
        sum(r.file_size)::bigint AS logical_bytes,
        count(*) FILTER (WHERE shared.oldest IS NULL OR shared.oldest = r.file_key) AS blob_count,
        coalesce(
            sum(b.size) FILTER (WHERE shared.oldest IS NULL OR shared.oldest = r.file_key), 0
        )::bigint AS stored_bytes
    FROM bdr.binary_data_reference r
    JOIN bdr.blob b ON b.blob_id = r.blob_id
    LEFT JOIN (
        SELECT blob_id, min(file_key) AS oldest FROM bdr.binary_data_reference GROUP BY blob_id HAVING count(*) > 1
    ) shared ON shared.blob_id = r.blob_id
    GROUP BY r.namespace, b.storage_name, r.file_kind
    """,
    "Who uses how much: references and bytes by namespace, storage and kind of file. Its counts and bytes may be "
    "added up over any rows. Reads all references, whatever is asked for.",
    {
        "namespace": "As in binary_data_reference, such as a tenant.",
        "storage_name": "The storage that holds the bytes.",
        "file_kind": "As in binary_data_reference; null is any other kind.",
        "reference_count": "References.",
        "held_count": "Of these, references with a count above zero.",
        "logical_bytes": "Bytes as their users see them: a blob that several references share counts for each.",
        "blob_count": "Blobs, each counted once in the whole view: in the row of its oldest reference.",
        "stored_bytes": "Bytes that these blobs take up in the storage, so each is counted once too; their sum is what "
        "live blobs take up. Blobs still being uploaded or deleted have no reference and are not here.",
    },
)
HELD_LONGEST = View(
    "held_longest",
    """
    SELECT r.file_key, r.namespace, r.ref_count, now() - r.created_at AS age, r.created_at, r.last_access_at,
        r.expires_at, r.pinned, b.storage_name, r.file_name, r.file_kind, r.file_size, i.name AS instance_name, r.labels
    FROM bdr.binary_data_reference r
    JOIN bdr.blob b ON b.blob_id = r.blob_id
    LEFT JOIN bdr.engine_instance i ON i.instance_id = b.instance_id
    WHERE r.ref_count > 0
    """,
    "What is still referred to, and since when it exists. ORDER BY file_key LIMIT n gives the oldest and reads no more "
    "than it shows; ORDER BY created_at is exact even if the engines' clocks are not, and reads all references.",
    {
        "file_key": "The reference; keys sort by the time they were made.",
        "namespace": "As in binary_data_reference.",
        "ref_count": "Registrations (the store is one) minus releases; above zero.",
        "age": "Time since created_at, on the database's clock.",
        "created_at": "When it was stored.",
        "last_access_at": "Last registration, release or read.",
        "expires_at": "When it will go although it is held; null is not as long as it is held.",
        "pinned": "Never expires while true.",
        "storage_name": "The storage that holds the bytes.",
        "file_name": "The file's own name.",
        "file_kind": "As in binary_data_reference.",
        "file_size": "Bytes.",
        "instance_name": "The engine that stored it; null when nothing is known of it any more.",
        "labels": "Workflow, execution, node, port, as the engine gave them.",
    },
)
EXPIRING_SOON = View(
    "expiring_soon",
    """
    SELECT r.file_key, r.namespace, r.expires_at, r.expires_at - now() AS expires_in,
        CASE
            WHEN r.expires_at = (r.created_at AT TIME ZONE 'UTC' + r.max_retention) AT TIME ZONE 'UTC'
            THEN 'max_retention' ELSE 'zero_ref_retention'
        END AS rule,
        r.ref_count, r.last_access_at, b.storage_name, r.file_name, r.file_kind, r.file_size, r.labels
    FROM bdr.binary_data_reference r
    JOIN bdr.blob b ON b.blob_id = r.blob_id
    WHERE r.expires_at > now()
    """,
    "What will expire, when, and by which rule, if nobody registers or reads it before. ORDER BY expires_at LIMIT n "
    "reads no more than it shows. What has expired already is in reaper_backlog.",
    {
        "file_key": "The reference.",
        "namespace": "As in binary_data_reference.",
        "expires_at": "From then on a reaper may delete it.",
        "expires_in": "Time until then, on the database's clock.",
        "rule": "max_retention: too long since it was stored, reading it changes nothing. zero_ref_retention: too long "
        "since the last access while nobody holds it; a read puts it off, a registration ends it.",
        "ref_count": "Registrations (the store is one) minus releases.",
        "last_access_at": "Last registration, release or read.",
        "storage_name": "The storage that holds the bytes.",
        "file_name": "The file's own name.",
        "file_kind": "As in binary_data_reference.",
        "file_size": "Bytes.",
        "labels": "Workflow, execution, node, port, as the engine gave them.",
    },
)
REAPER_BACKLOG = View(
    "reaper_backlog",
    """
    SELECT due.storage_name, due.state,
        sum(due.items)::bigint AS due_count,
        sum(due.bytes)::bigint AS bytes,
        min(due.since) AS overdue_since,
        now() - min(due.since) AS overdue_by
    FROM (
        SELECT b.storage_name, 'expired' AS state, e.items, e.since,
            CASE WHEN needed.file_key IS NULL THEN b.size ELSE 0 END AS bytes
        FROM (
            SELECT r.blob_id, count(*) AS items, min(r.expires_at) AS since
            FROM bdr.binary_data_reference r WHERE r.expires_at <= now() GROUP BY r.blob_id
        ) e
        JOIN bdr.blob b ON b.blob_id = e.blob_id
        LEFT JOIN LATERAL (
            SELECT o.file_key FROM bdr.binary_data_reference o
            WHERE o.blob_id = e.blob_id AND (o.expires_at IS NULL OR o.expires_at > now()) LIMIT 1
        ) needed ON true
        UNION ALL
        SELECT b.storage_name, b.state, 1, b.next_attempt_at, b.size
        FROM bdr.blob b
        WHERE b.state <> 'live' AND b.next_attempt_at <= now()
    ) due
    GROUP BY due.storage_name, due.state
    """,
    "What the reapers have not got to: nothing here, or nothing overdue by more than an interval or two of theirs, is "
    "as it should be. Reads what is due and no more.",
    {
        "storage_name": "The storage that holds the bytes.",
        "state": "expired: references to delete. pending: uploads past their deadline. deleting: objects to delete.",
        "due_count": "References (expired) or blobs (pending, deleting) that a reaper may take now.",
        "bytes": "What their objects take up, each counted once. An expired reference whose blob others need frees "
        "nothing; the size of what was never wholly uploaded is unknown and left out, null when there is no other.",
        "overdue_since": "When the first of them was due.",
        "overdue_by": "Time since then, on the database's clock.",
    },
)
STUCK_BLOB = View(
    "stuck_blob",
    """
    SELECT b.blob_id, b.storage_name, b.object_path, b.state, b.attempts, b.last_error, b.next_attempt_at, b.size,
        b.created_at, now() - b.created_at AS age, i.name AS instance_name
    FROM bdr.blob b
    LEFT JOIN bdr.engine_instance i ON i.instance_id = b.instance_id
    WHERE b.state <> 'live' AND CASE b.state
        WHEN 'pending' THEN b.next_attempt_at <= now()
        WHEN 'deleting' THEN
            b.last_error IS NOT NULL OR b.attempts > 1 OR (b.attempts = 1 AND b.next_attempt_at <= now())
        ELSE true
    END
    """,
    "Objects that did not come or go as they should, and why: uploads past their deadline, deletes that failed or were "
    "cut off, and what was given up. Reads blobs that are not live and no more.",
    {
        "blob_id": "The blob; for pending and deleting nothing is to be done, a reaper goes on with them.",
        "storage_name": "The storage that holds the object.",
        "object_path": "Its path below the storage's root.",
        "state": "pending: its upload did not end by its deadline. deleting: its upload failed, or a delete did, or "
        "was cut off. quarantined: deletes failed so often that a person has to decide.",
        "attempts": "How often a delete was begun; zero also where the storage could not be reached at all.",
        "last_error": "Why the last delete, or the upload, failed; null when it was cut off.",
        "next_attempt_at": "From then on a reaper tries again; null for quarantined.",
        "size": "Bytes; null when it was never wholly uploaded.",
        "created_at": "When its upload began.",
        "age": "Time since then, on the database's clock.",
        "instance_name": "The engine that uploaded it; null when nothing is known of it any more.",
    },
)
VIEWS = (USAGE, HELD_LONGEST, EXPIRING_SOON, REAPER_BACKLOG, STUCK_BLOB)


def upgrade() -> None:
    for view in VIEWS:
        name = f"{SCHEMA}.{view.name}"
        op.execute(f"CREATE VIEW {name} WITH (security_invoker = false) AS {view.query}")
        op.execute(f"COMMENT ON VIEW {name} IS {_literal(view.comment)}")
        for column, comment in view.columns.items():
            op.execute(f"COMMENT ON COLUMN {name}.{column} IS {_literal(comment)}")


def downgrade() -> None:
    for view in reversed(VIEWS):
        op.execute(f"DROP VIEW {SCHEMA}.{view.name}")


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"'{quoted}'"
