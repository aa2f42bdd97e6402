"""Indexes of unsettled blobs and of namespaces.

Revision ID: b857072cdbad
Revises: dcf7b82c6774
Create Date: 2026-11-24 14:46:28.013342+00:00

Claims of `pending` and of `deleting` blobs shared one range of an index, so each read through the other's backlog; now
the state comes before the deadline. The same index has the quarantined, which were found by reading the whole table.
Listing one namespace read the references of all others.

Every step may be repeated: an attempt that was cut off leaves an INVALID index, which the next one drops first.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision: str = "b857072cdbad"
down_revision: str | None = "dcf7b82c6774"
branch_labels: None = None
depends_on: None = None

SCHEMA = "bdr"
UNSETTLED = "ix_blob_storage_name_state_next_attempt_at"
NAMESPACES = "ix_binary_data_reference_namespace_file_key"
DEADLINES = "ix_blob_next_attempt_at"


def upgrade() -> None:
    with _concurrently():
        _make_index(UNSETTLED, "blob", ["storage_name", "state", "next_attempt_at"], where="state <> 'live'")
        _drop_index(DEADLINES, "blob")
        _make_index(NAMESPACES, "binary_data_reference", ["namespace", "file_key"])


def downgrade() -> None:
    with _concurrently():
        _make_index(DEADLINES, "blob", ["storage_name", "next_attempt_at"], where="state IN ('pending', 'deleting')")
        _drop_index(UNSETTLED, "blob")
        _drop_index(NAMESPACES, "binary_data_reference")


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


def _make_index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
    _drop_index(name, table)
    condition = None if where is None else sa.text(where)
    op.create_index(name, table, columns, schema=SCHEMA, postgresql_concurrently=True, postgresql_where=condition)


def _drop_index(name: str, table: str) -> None:
    op.drop_index(name, table, schema=SCHEMA, postgresql_concurrently=True, if_exists=True)
