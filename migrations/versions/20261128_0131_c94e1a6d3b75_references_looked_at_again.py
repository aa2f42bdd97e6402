"""References looked at again.

Revision ID: c94e1a6d3b75
Revises: 5b2d7f90c1ae
Create Date: 2026-11-28 01:31:00.000000+00:00

The foreign key that was made anew has held for new rows only; all were held by the old one. Reading them all takes as
long as the table is large, and nobody waits for it.
"""

from alembic import op

revision: str = "c94e1a6d3b75"
down_revision: str | None = "5b2d7f90c1ae"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    op.execute("SET LOCAL statement_timeout = '1h'")
    op.execute("ALTER TABLE bdr.binary_data_reference VALIDATE CONSTRAINT fk_binary_data_reference_blob")


def downgrade() -> None:
    """A constraint that holds for all rows holds for the new ones."""
