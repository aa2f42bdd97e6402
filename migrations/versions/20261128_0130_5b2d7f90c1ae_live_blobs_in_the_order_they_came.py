"""Live blobs in the order they came.

Revision ID: 5b2d7f90c1ae
Revises: 5b1d7e9f2a40
Create Date: 2026-11-28 01:30:00.000000+00:00

What the foreign key of references points at was unique in the order (id, state). A blob is `pending` before it is
`live`, so of each two entries were made side by side, in pages that stayed half empty: 115 bytes a blob. With the state
in front the few that are not live have a range of their own, whose pages are used again: 90.

A blob is published once, and that changes its indexed state, so room for HOT updates is of no use to it: 20 bytes.

An attempt that was cut off may leave an INVALID index, which the next one drops first; a whole one is kept. The rest
is one short transaction. The new constraint refuses new rows at once; the next revision looks at the old ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision: str = "5b2d7f90c1ae"
down_revision: str | None = "5b1d7e9f2a40"
branch_labels: None = None
depends_on: None = None

SCHEMA = "bdr"
BLOB = f"{SCHEMA}.blob"
REFERENCE = f"{SCHEMA}.binary_data_reference"
REFERS = "fk_binary_data_reference_blob"
BY_STATE = "uq_blob_state_blob_id"
BY_ID = "uq_blob_blob_id_state"
_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"


def upgrade() -> None:
    _make_index(BY_STATE, ["state", "blob_id"])
    _replace(BY_ID, BY_STATE)
    op.execute(f"ALTER TABLE {BLOB} RESET (fillfactor)")


def downgrade() -> None:
    _make_index(BY_ID, ["blob_id", "state"])
    _replace(BY_STATE, BY_ID)
    op.execute(f"ALTER TABLE {BLOB} SET (fillfactor = 85)")
    with _concurrently():
        op.execute(f"ALTER TABLE {REFERENCE} VALIDATE CONSTRAINT {REFERS}")


def _make_index(name: str, columns: list[str]) -> None:
    with _concurrently():
        # Where only the SQL is written there is nobody to ask.
        asked = not op.get_context().as_sql
        if not (asked and op.get_bind().scalar(sa.text(_IS_VALID), {"name": f"{SCHEMA}.{name}"})):
            op.drop_index(name, "blob", schema=SCHEMA, postgresql_concurrently=True, if_exists=True)
            op.create_index(name, "blob", columns, unique=True, schema=SCHEMA, postgresql_concurrently=True)


def _replace(old: str, new: str) -> None:
    # A store takes them the other way round, so one of the two may have to try again; the index is not made again then.
    op.execute(f"LOCK TABLE {REFERENCE}, {BLOB} IN ACCESS EXCLUSIVE MODE")
    op.execute(f"ALTER TABLE {REFERENCE} DROP CONSTRAINT {REFERS}")
    op.execute(f"ALTER TABLE {BLOB} DROP CONSTRAINT {old}, ADD CONSTRAINT {new} UNIQUE USING INDEX {new}")
    op.execute(
        f"ALTER TABLE {REFERENCE} ADD CONSTRAINT {REFERS} FOREIGN KEY (blob_id, blob_state) "
        f"REFERENCES {BLOB} (blob_id, state) NOT VALID"
    )


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
