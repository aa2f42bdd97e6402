"""Statements that are asked so often that SQLAlchemy's way to the driver would cost more than the server's answer."""

from collections.abc import Mapping
from typing import Any

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql.elements import ClauseElement

# SQLAlchemy does not type this one.
_DIALECT: Any = dialect()  # type: ignore[no-untyped-call]


class Prepared:
    """A statement compiled once into what asyncpg takes: numbered parameters, values as they are.

    It holds for values that asyncpg takes without SQLAlchemy's help: numbers, texts, bytes, times, ids, arrays of them.
    """

    def __init__(self, statement: ClauseElement) -> None:
        compiled: Any = statement.compile(dialect=_DIALECT)
        self.sql: str = compiled.string
        self._fixed: dict[str, Any] = compiled.params
        self._order: tuple[str, ...] = tuple(compiled.positiontup or ())

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of their numbers."""
        return [values[name] if name in values else self._fixed[name] for name in self._order]

    async def fetch(self, connection: asyncpg.Connection, values: Mapping[str, Any]) -> list[asyncpg.Record]:
        """Run it on one of the driver's own connections."""
        return list(await connection.fetch(self.sql, *self.arguments(values)))
