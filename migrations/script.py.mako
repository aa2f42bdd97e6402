"""${message.rstrip(".")}.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}

Engines of this version and of the one before run on the schema while it changes. So, before this is merged:

* It takes a lock for at most 4 s and a statement for at most 5 s. What needs longer raises that here, and says why:
  op.execute("SET LOCAL statement_timeout = '10min'").
* A new column is nullable or has a constant default. Rows are filled in batches outside of migrations.
* An index on a table with rows: in a revision of its own, in `with op.get_context().autocommit_block():`, with
  `postgresql_concurrently=True, if_not_exists=True`, after dropping an INVALID one of that name.
* A constraint on a table with rows: NOT VALID here, VALIDATE in a later revision. NOT NULL: as a CHECK first.
  UNIQUE: an index made concurrently, then `ADD CONSTRAINT ... USING INDEX`.
* Dropping or renaming takes three releases: stop using it, drop it, then reuse the name.
* Names are final: write `op.f("ck_table_name")`, or the naming convention is applied a second time.
* Every table and column has a comment: auditors read them.
* `downgrade` undoes all of it, so that up, down and up again works.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: None = ${repr(branch_labels)}
depends_on: None = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
