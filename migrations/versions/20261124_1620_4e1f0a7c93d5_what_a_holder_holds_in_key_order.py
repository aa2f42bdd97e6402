"""What a holder holds, in key order.

Revision ID: 4e1f0a7c93d5
Revises: 12d8752c84d7
Create Date: 2026-11-24 16:20:41.507118+00:00

All that a holder holds is let go and listed in key order. By an index of holders alone that was a sort of all of it,
or, to find a few, a walk along the primary key through what everybody else holds.

Every step may be repeated: an attempt that was cut off leaves an INVALID index, which the next one drops first.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op

revision: str = "4e1f0a7c93d5"
down_revision: str | None = "12d8752c84d7"
branch_labels: None = None
depends_on: None = None

SCHEMA = "bdr"
TABLE = "reference_holder"
HOLDERS = "ix_reference_holder_holder"
IN_KEY_ORDER = "ix_reference_holder_holder_file_key"


def upgrade() -> None:
    with _concurrently():
        _make_index(IN_KEY_ORDER, ["holder", "file_key"])
        _drop_index(HOLDERS)


def downgrade() -> None:
    with _concurrently():
        _make_index(HOLDERS, ["holder"])
        _drop_index(IN_KEY_ORDER)


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


def _make_index(name: str, columns: list[str]) -> None:
    _drop_index(name)
    op.create_index(name, TABLE, columns, schema=SCHEMA, postgresql_concurrently=True)


def _drop_index(name: str) -> None:
    op.drop_index(name, TABLE, schema=SCHEMA, postgresql_concurrently=True, if_exists=True)
