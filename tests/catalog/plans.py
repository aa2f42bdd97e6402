"""Shows how the server ran a statement: the plans of what the code sends, with parameters as the driver sends them."""

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

# A prepared statement is planned for its parameters the first five times; then the server may keep one plan for all.
MODES: Final = ("force_custom_plan", "force_generic_plan")
_READ_END_TO_END: Final = """
SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE schemaname = 'bdr' AND seq_scan > 0
"""
# These read what other nodes made, or make it themselves.
_DERIVED: Final = ("CTE Scan", "Function Scan", "Subquery Scan", "Values Scan")


@dataclass(frozen=True, slots=True)
class Sent:
    """A statement as it reached the driver: the SQLAlchemy object it came from, its SQL, its parameters."""

    statement: Any
    sql: str
    parameters: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one statement was run.

    Attributes:
        indexes: all that were used.
        scanned: tables that were read from end to end, also by the checks of foreign keys.
        rows: read by all scans together, also those that a filter then left out.
        buffers: pages touched.
        cost: what the server expected, by which it chooses between plans.
        text: the plan, for people.
    """

    indexes: frozenset[str]
    scanned: frozenset[str]
    rows: int
    buffers: int
    cost: float
    text: str = field(repr=False)


async def sent_by(url: str, work: Callable[[AsyncConnection], Awaitable[object]]) -> list[Sent]:
    """What `work` sends, run in a transaction that is rolled back; of many rows at once, the first."""
    sent: list[Sent] = []

    def note(_connection: object, _cursor: object, sql: str, parameters: Any, context: Any, many: bool) -> None:
        sent.append(Sent(context.invoked_statement, sql, tuple(parameters[0] if many else parameters)))

    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    event.listen(engine.sync_engine, "before_cursor_execute", note)
    async with engine.connect() as connection:
        await work(connection)
        await connection.rollback()
    await engine.dispose()
    return sent


async def plan_of(connection: asyncpg.Connection, sent: Sent, mode: str = MODES[0]) -> Plan:
    """Run what was sent with a plan of that mode, in a transaction that is rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
    await connection.execute(f"PREPARE guarded AS {sent.sql}")
    try:
        # Counts of earlier transactions may still be among them.
        before = set(await connection.fetch(_READ_END_TO_END))
        arguments = f"({', '.join(map(_literal, sent.parameters))})" if sent.parameters else ""
        shown = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE guarded{arguments}")
        scanned = set(await connection.fetch(_READ_END_TO_END)) - before
    finally:
        await transaction.rollback()
        await connection.execute("DEALLOCATE guarded")
    top = json.loads(shown)[0]["Plan"]
    nodes = list(_nodes(top))
    return Plan(
        indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        scanned=frozenset(row["relname"] for row in scanned),
        rows=sum(map(_rows_read, nodes)),
        buffers=top["Shared Hit Blocks"] + top["Shared Read Blocks"],
        cost=top["Total Cost"],
        text=json.dumps(top, indent=1),
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _rows_read(node: dict[str, Any]) -> int:
    if "Scan" not in node["Node Type"] or node["Node Type"] in _DERIVED:
        return 0
    left_out = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    rows: float = (node["Actual Rows"] + left_out) * node["Actual Loops"]
    return round(rows)


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    if isinstance(value, timedelta):
        return f"'{value.total_seconds()} s'"
    if isinstance(value, list):
        return "'{" + ",".join(map(_element, value)) + "}'"
    quoted = str(value).replace("'", "''")
    return f"'{quoted}'"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return json.dumps(str(value).replace("'", "''"))
