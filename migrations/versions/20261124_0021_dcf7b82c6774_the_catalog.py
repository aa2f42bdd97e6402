"""The catalog.

Revision ID: dcf7b82c6774
Revises:
Create Date: 2026-11-24 00:21:36.282041+00:00

Nothing is here before it, so it may take its time and its locks as they come.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "dcf7b82c6774"
down_revision: str | None = None
branch_labels: None = None
depends_on: None = None

SCHEMA = "bdr"
MOMENT = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("now()")
# Free space left on each page lets PostgreSQL keep the new version of an updated row beside the old one (HOT).
HOT = {"fillfactor": 85}
RETENTION = "BETWEEN interval '0' AND interval '1000 years'"
# Sums are made in UTC: `timestamptz + interval` depends on the session's time zone, and is not allowed here.
EXPIRES_AT = (
    "CASE WHEN pinned THEN NULL ELSE least("
    "CASE WHEN ref_count = 0 OR held_at_max_retention = 'delete' "
    "THEN (created_at AT TIME ZONE 'UTC' + max_retention) AT TIME ZONE 'UTC' END, "
    "CASE WHEN ref_count = 0 THEN (last_access_at AT TIME ZONE 'UTC' + zero_ref_retention) AT TIME ZONE 'UTC' END"
    ") END"
)
# What a file key is looked up for once its reference is gone, or before it is there.
ENDS = "status = 'running' OR operation_type IN ('delete', 'cleanup', 'reap', 'fsck')"


def upgrade() -> None:
    _make_catalog()
    _make_storage()
    _make_engine_instance()
    _make_blob()
    _make_binary_data_reference()
    _make_reference_holder()
    _make_operation()
    _make_operation_total()
    _make_reaper_clock()
    op.execute(f"COMMENT ON TABLE {SCHEMA}.alembic_version IS 'The revision of this schema; bdr db current shows it.'")


def downgrade() -> None:
    references = ["reference_holder", "binary_data_reference", "blob", "storage"]
    for table in [*references, "operation_total", "operation", "engine_instance", "reaper_clock", "catalog"]:
        op.drop_table(table, schema=SCHEMA)


def _make_catalog() -> None:
    op.create_table(
        "catalog",
        sa.Column("catalog_id", sa.Uuid(), nullable=False, comment="Also written into each storage's marker object."),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False, comment="When the catalog was made."),
        sa.Column(
            "only_one",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="Keeps the table at one row.",
        ),
        sa.CheckConstraint("only_one", name=op.f("ck_catalog_only_one")),
        sa.PrimaryKeyConstraint("only_one", name=op.f("pk_catalog")),
        schema=SCHEMA,
        comment="The catalog's identity: one row, written by the first migration.",
    )
    op.execute(f"INSERT INTO {SCHEMA}.catalog (catalog_id) VALUES (gen_random_uuid())")  # noqa: S608 - a constant


def _make_storage() -> None:
    op.create_table(
        "storage",
        sa.Column("name", sa.Text(), nullable=False, comment="The name in the engines' configuration."),
        sa.Column("storage_type", sa.Text(), nullable=False, comment="OpenDAL's service: fs, s3, redis, memory, ..."),
        sa.Column("root", sa.Text(), nullable=False, comment="Where it lies, without secrets."),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="Hash of the location, without secrets."),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False, comment="When it was first used."),
        sa.Column(
            "instance_id",
            sa.Uuid(),
            nullable=True,
            comment="The engine whose memory it is; null for storages that can be shared.",
        ),
        sa.Column(
            "marked_at",
            MOMENT,
            nullable=True,
            comment="When its marker object was written; from then on a storage without it is not the right place.",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_storage")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_storage_fingerprint")),
        schema=SCHEMA,
        comment="One row for each storage; no secret is ever written here.",
    )


def _make_engine_instance() -> None:
    op.create_table(
        "engine_instance",
        sa.Column("instance_id", sa.Uuid(), nullable=False, comment="Made when the engine starts."),
        sa.Column("name", sa.Text(), nullable=False, comment="The configured name; the host's name when none is."),
        sa.Column("host", sa.Text(), nullable=False, comment="Host name."),
        sa.Column("pid", sa.BigInteger(), nullable=False, comment="Process id on that host."),
        sa.Column("version", sa.Text(), nullable=False, comment="Version of bdr."),
        sa.Column("started_at", MOMENT, server_default=NOW, nullable=False, comment="When it started."),
        sa.Column("heartbeat_at", MOMENT, server_default=NOW, nullable=False, comment="Its last sign of life."),
        sa.Column(
            "missed_at",
            MOMENT,
            nullable=True,
            comment="When a reaper first found its sign of life overdue; null again with the next one.",
        ),
        sa.Column(
            "stopped_at", MOMENT, nullable=True, comment="When it closed, or was declared dead; null while it lives."
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_engine_instance")),
        schema=SCHEMA,
        comment="One row for each engine process that uses the catalog, or did.",
        postgresql_with=HOT,
    )
    op.create_index(
        "ix_engine_instance_alive",
        "engine_instance",
        ["heartbeat_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("stopped_at IS NULL"),
    )


def _make_blob() -> None:
    op.create_table(
        "blob",
        sa.Column("blob_id", sa.Uuid(), nullable=False, comment="UUIDv7; never used again."),
        sa.Column("storage_name", sa.Text(), nullable=False, comment="The storage that holds the object."),
        sa.Column(
            "object_path",
            sa.Text(collation="C"),
            nullable=False,
            comment="Path below the storage's root; written at most once.",
        ),
        sa.Column(
            "state",
            sa.Text(),
            nullable=False,
            comment="pending (being uploaded), live, deleting, or quarantined (deletes failed; a person decides).",
        ),
        sa.Column("size", sa.BigInteger(), nullable=True, comment="Bytes; null until it is live."),
        sa.Column("checksum", sa.LargeBinary(), nullable=True, comment="SHA-256 of the bytes; null until it is live."),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False, comment="When the upload was reserved."),
        sa.Column("instance_id", sa.Uuid(), nullable=False, comment="The engine instance that uploaded it."),
        sa.Column(
            "attempts",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="How often a delete was begun.",
        ),
        sa.Column(
            "next_attempt_at",
            MOMENT,
            nullable=True,
            comment="Until then the row belongs to its upload or deleter; from then on a reaper may claim it.",
        ),
        sa.Column("last_error", sa.Text(), nullable=True, comment="Why the last delete, or the upload, failed."),
        sa.CheckConstraint(
            "(state IN ('pending', 'deleting')) = (next_attempt_at IS NOT NULL)", name=op.f("ck_blob_deadline")
        ),
        sa.CheckConstraint(
            "state <> 'live' OR (size IS NOT NULL AND checksum IS NOT NULL)", name=op.f("ck_blob_live_is_complete")
        ),
        sa.CheckConstraint("state IN ('pending', 'live', 'deleting', 'quarantined')", name=op.f("ck_blob_state")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_blob_attempts")),
        sa.CheckConstraint("octet_length(checksum) = 32", name=op.f("ck_blob_checksum")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_blob_size")),
        sa.ForeignKeyConstraint(["storage_name"], ["bdr.storage.name"], name=op.f("fk_blob_storage")),
        sa.PrimaryKeyConstraint("blob_id", name=op.f("pk_blob")),
        sa.UniqueConstraint("blob_id", "state", name=op.f("uq_blob_blob_id_state")),
        sa.UniqueConstraint("storage_name", "object_path", name=op.f("uq_blob_storage_name_object_path")),
        schema=SCHEMA,
        comment="One row for each object in a storage, from before its first byte until after its last.",
        postgresql_with=HOT,
    )
    op.create_index(
        "ix_blob_next_attempt_at",
        "blob",
        ["storage_name", "next_attempt_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('pending', 'deleting')"),
    )


def _make_binary_data_reference() -> None:
    op.create_table(
        "binary_data_reference",
        sa.Column(
            "file_key",
            sa.Text(collation="C"),
            nullable=False,
            comment="What nodes pass around; sorts by the time it was made.",
        ),
        sa.Column("blob_id", sa.Uuid(), nullable=False, comment="The blob that holds the bytes; several may share it."),
        sa.Column(
            "blob_state",
            sa.Text(),
            sa.Computed("'live'", persisted=True),
            nullable=False,
            comment="Always live: only live blobs can be referenced.",
        ),
        sa.Column(
            "namespace",
            sa.Text(),
            server_default=sa.text("'default'"),
            nullable=False,
            comment="What audits group by first, such as a tenant.",
        ),
        sa.Column("mime_kind", sa.Text(), nullable=False, comment="MIME type."),
        sa.Column("file_size", sa.BigInteger(), nullable=False, comment="Bytes."),
        sa.Column("file_name", sa.Text(), nullable=True, comment="The file's own name, for people."),
        sa.Column(
            "file_kind",
            sa.Text(),
            nullable=True,
            comment="text, json, image, video, audio, pdf, html, excel, word, ppt, or null.",
        ),
        sa.Column("file_extension", sa.Text(), nullable=True, comment="Extension of the file's name, without the dot."),
        sa.Column("directory", sa.Text(), nullable=True, comment="What stood before the file's name."),
        sa.Column(
            "last_modified", MOMENT, nullable=True, comment="When the file was last changed, as the caller said."
        ),
        sa.Column(
            "labels",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Workflow, execution, node, port: what else audits group by.",
        ),
        sa.Column(
            "ref_count", sa.BigInteger(), nullable=False, comment="Registrations (the store is one) minus releases."
        ),
        sa.Column(
            "holder_count",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="How many of ref_count are by name: rows of reference_holder.",
        ),
        sa.Column(
            "pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="Never expires while true."
        ),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False, comment="When it was stored."),
        sa.Column(
            "last_access_at",
            MOMENT,
            server_default=NOW,
            nullable=False,
            comment="Last registration, release or read; reads may be noted a minute late.",
        ),
        sa.Column(
            "zero_ref_retention",
            sa.Interval(),
            nullable=True,
            comment="Kept this long after the last access while ref_count is 0; null is for ever.",
        ),
        sa.Column(
            "max_retention",
            sa.Interval(),
            nullable=True,
            comment="Kept this long after created_at; null is for ever.",
        ),
        sa.Column(
            "held_at_max_retention",
            sa.Text(),
            server_default=sa.text("'delete'"),
            nullable=False,
            comment="What becomes of it at max_retention while ref_count is not 0: delete, or keep until it is 0.",
        ),
        sa.Column(
            "expires_at",
            MOMENT,
            sa.Computed(EXPIRES_AT, persisted=True),
            nullable=True,
            comment="From then on a reaper may delete it; null is never.",
        ),
        sa.CheckConstraint("file_key ~ '^[0-9A-Za-z._-]{1,128}$'", name=op.f("ck_binary_data_reference_file_key")),
        sa.CheckConstraint("jsonb_typeof(labels) = 'object'", name=op.f("ck_binary_data_reference_labels")),
        sa.CheckConstraint(f"max_retention {RETENTION}", name=op.f("ck_binary_data_reference_max_retention")),
        sa.CheckConstraint(f"zero_ref_retention {RETENTION}", name=op.f("ck_binary_data_reference_zero_ref_retention")),
        sa.CheckConstraint(
            "held_at_max_retention IN ('delete', 'keep')", name=op.f("ck_binary_data_reference_held_at_max_retention")
        ),
        sa.CheckConstraint("file_size >= 0", name=op.f("ck_binary_data_reference_file_size")),
        sa.CheckConstraint("ref_count >= 0", name=op.f("ck_binary_data_reference_ref_count")),
        sa.CheckConstraint("holder_count BETWEEN 0 AND ref_count", name=op.f("ck_binary_data_reference_holder_count")),
        sa.ForeignKeyConstraint(
            ["blob_id", "blob_state"],
            ["bdr.blob.blob_id", "bdr.blob.state"],
            name=op.f("fk_binary_data_reference_blob"),
        ),
        sa.PrimaryKeyConstraint("file_key", name=op.f("pk_binary_data_reference")),
        schema=SCHEMA,
        comment="One row for each BinaryDataReference that can be read.",
        postgresql_with=HOT,
    )
    op.create_index("ix_binary_data_reference_blob_id", "binary_data_reference", ["blob_id"], schema=SCHEMA)
    op.create_index(
        "ix_binary_data_reference_expires_at",
        "binary_data_reference",
        ["expires_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )


def _make_reference_holder() -> None:
    op.create_table(
        "reference_holder",
        sa.Column("file_key", sa.Text(collation="C"), nullable=False, comment="The reference that is held."),
        sa.Column("holder", sa.Text(), nullable=False, comment="Who holds it, as the caller named it."),
        sa.Column(
            "instance_id",
            sa.Uuid(),
            nullable=True,
            comment="It lets go when this engine instance stops; null when it is bound to none.",
        ),
        sa.Column(
            "acquired_at",
            MOMENT,
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="When it was first registered.",
        ),
        sa.Column(
            "lease_expires_at",
            MOMENT,
            nullable=True,
            comment="It lets go then, unless it is registered again before; null when it has no lease.",
        ),
        sa.CheckConstraint("length(holder) BETWEEN 1 AND 256", name=op.f("ck_reference_holder_holder")),
        sa.ForeignKeyConstraint(
            ["file_key"],
            ["bdr.binary_data_reference.file_key"],
            name=op.f("fk_reference_holder_binary_data_reference"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("file_key", "holder", name=op.f("pk_reference_holder")),
        schema=SCHEMA,
        comment="One row for each named registration; each is one of its reference's ref_count.",
    )
    op.create_index("ix_reference_holder_holder", "reference_holder", ["holder"], schema=SCHEMA)
    for column in ("instance_id", "lease_expires_at"):
        op.create_index(
            f"ix_reference_holder_{column}",
            "reference_holder",
            [column],
            schema=SCHEMA,
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )


def _make_operation() -> None:
    op.create_table(
        "operation",
        sa.Column("operation_id", sa.Uuid(), nullable=False, comment="The caller's, or a new UUIDv7."),
        sa.Column(
            "operation_type", sa.Text(), nullable=False, comment="store, retrieve, delete, cleanup, reap or reap_pass."
        ),
        sa.Column("file_key", sa.Text(), nullable=True, comment="The reference it was about, when there was one."),
        sa.Column("namespace", sa.Text(), nullable=True, comment="That reference's namespace."),
        sa.Column("instance_id", sa.Uuid(), nullable=False, comment="The engine that did it."),
        sa.Column("total_bytes", sa.BigInteger(), nullable=True, comment="Bytes to process; null is unknown."),
        sa.Column(
            "processed_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="Bytes so far."
        ),
        sa.Column(
            "status", sa.Text(), nullable=False, comment="running (for what takes long), succeeded, failed, cancelled."
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="Why it failed."),
        sa.Column("detail", postgresql.JSONB(), nullable=True, comment="More, such as the rule of a reap."),
        sa.Column("started_at", MOMENT, nullable=False, comment="When it began."),
        sa.Column("updated_at", MOMENT, nullable=False, comment="When this row was last written."),
        sa.Column("finished_at", MOMENT, nullable=True, comment="When it ended; null while it runs."),
        sa.CheckConstraint("(status = 'running') = (finished_at IS NULL)", name=op.f("ck_operation_finished")),
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_operation_status")
        ),
        sa.CheckConstraint("processed_bytes >= 0", name=op.f("ck_operation_processed_bytes")),
        sa.CheckConstraint("total_bytes >= 0", name=op.f("ck_operation_total_bytes")),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_operation")),
        schema=SCHEMA,
        comment="One row for each store, delete and reap, and each retrieve that reached a storage.",
        postgresql_with=HOT,
    )
    op.create_index(
        "ix_operation_running",
        "operation",
        ["instance_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index("ix_operation_started_at", "operation", ["started_at"], schema=SCHEMA)
    op.create_index(
        "ix_operation_end_of_file_key", "operation", ["file_key"], schema=SCHEMA, postgresql_where=sa.text(ENDS)
    )


def _make_operation_total() -> None:
    op.create_table(
        "operation_total",
        sa.Column("day", sa.Date(), nullable=False, comment="UTC day on which the operations began."),
        sa.Column("instance_id", sa.Uuid(), nullable=False, comment="The engine that did them."),
        sa.Column("operation_type", sa.Text(), nullable=False, comment="As in operation."),
        sa.Column("status", sa.Text(), nullable=False, comment="As in operation; never running."),
        sa.Column("operations", sa.BigInteger(), nullable=False, comment="How many."),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="Bytes they processed."),
        sa.PrimaryKeyConstraint("day", "instance_id", "operation_type", "status", name=op.f("pk_operation_total")),
        schema=SCHEMA,
        comment="Sums of the operation records that were pruned.",
    )


def _make_reaper_clock() -> None:
    op.create_table(
        "reaper_clock",
        sa.Column("boot_id", sa.Text(), nullable=False, comment="Which machine, since which start."),
        sa.Column("seen_at", MOMENT, nullable=False, comment="The database's time at its last pass."),
        sa.Column("uptime", sa.Interval(), nullable=False, comment="How long it had been up then."),
        sa.PrimaryKeyConstraint("boot_id", name=op.f("pk_reaper_clock")),
        schema=SCHEMA,
        comment="One row for each boot of a machine that reaps: the database's time, and its own.",
    )
