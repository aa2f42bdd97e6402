"""Instances that stopped long ago.

Revision ID: 8a3c5e0d41f7
Revises: 4e1f0a7c93d5
Create Date: 2026-11-24 18:45:12.904311+00:00

The reaper deletes the rows of engine instances whose records it has pruned; an index finds them.

Every step may be repeated: an attempt that was cut off leaves an INVALID index, which the next one drops first.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision: str = "8a3c5e0d41f7"
down_revision: str | None = "4e1f0a7c93d5"
branch_labels: None = None
depends_on: None = None

SCHEMA = "bdr"
TABLE = "engine_instance"
STOPPED = "ix_engine_instance_stopped_at"
BEFORE = "store, retrieve, delete, cleanup, reap or reap_pass."
AFTER = "store, retrieve, delete, cleanup, reap, reap_pass, fsck or fsck_repair."


def upgrade() -> None:
    _comment(AFTER)
    with _concurrently():
        _drop_index()
        op.create_index(
            STOPPED,
            TABLE,
            ["stopped_at"],
            schema=SCHEMA,
            postgresql_concurrently=True,
            postgresql_where=sa.text("stopped_at IS NOT NULL"),
        )


def downgrade() -> None:
    _comment(BEFORE)
    with _concurrently():
        _drop_index()


def _comment(types: str) -> None:
    op.execute(f"COMMENT ON COLUMN {SCHEMA}.operation.operation_type IS '{types}'")


@contextmanager
def _concurrently() -> Iterator[None]:
    with op.get_context().autocommit_block():
        # Nobody waits for an index made concurrently, so it may take as long as the table is large, and wait for
        # transactions that began before it.
        op.execute("SET statement_timeout = '1h'")
        op.execute("SET lock_timeout = '10min'")
        yield
        op.execute("SET statement_timeout = '5s'")
        op.execute("SET lock_timeout = '4s'")


def _drop_index() -> None:
    op.drop_index(STOPPED, TABLE, schema=SCHEMA, postgresql_concurrently=True, if_exists=True)
