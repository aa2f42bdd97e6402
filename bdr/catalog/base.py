"""What all tables share: the schema, the names of constraints, and column types that are used often."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, TypeAlias

from sqlalchemy import ARRAY, FromClause, MetaData, Row, Text, bindparam, func
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.sql.type_api import TypeEngine

SCHEMA = "bdr"

NAMING_CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}

# Free space left on each page lets PostgreSQL keep the new version of an updated row beside the old one (HOT).
HOT_FILLFACTOR = {"postgresql_with": {"fillfactor": 85}}

_LONGEST_TEXT = 4000

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

Moment = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True))]


class Base(DeclarativeBase):
    """Base of all ORM tables, in PostgreSQL schema `bdr`."""

    metadata = MetaData(schema=SCHEMA, naming_convention=NAMING_CONVENTION)


def asked_for(name: str, **columns: TypeEngine[Any]) -> FromClause:
    """A derived table of the items of one call, from an array parameter per column: `asked_` and the column's name.

    Not the bare name: SQLAlchemy takes a parameter that is called as a column for a value to set.
    """
    arrays = [bindparam(f"asked_{column}", type_=ARRAY(kind)) for column, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*columns, name=name).render_derived(name=name)


def asked_keys(name: str = "asked") -> FromClause:
    """A derived table of the file keys of one call, from the array parameter `asked_file_key`."""
    return asked_for(name, file_key=Text())


def storable(text: str) -> str:
    """What PostgreSQL can hold of a text from anywhere: no NUL, no half characters, of reasonable length."""
    shown = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
    return shown.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def in_order(keys: Sequence[str]) -> list[str]:
    """Every key once, sorted: all multi-row statements lock their rows in this order, so none can deadlock."""
    return sorted(set(keys))
