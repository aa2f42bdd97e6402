"""`bdr ops` and `bdr stats`: what engines did and are doing."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bdr.cli.catalog import catalog
from bdr.cli.options import Given, Json, Limit
from bdr.cli.output import emit_fields, emit_json, emit_table
from bdr.cli.text import NOTHING, length, moment, size

if TYPE_CHECKING:
    from bdr.catalog.base import AnyRow

_COLUMNS = ("STARTED", "TYPE", "STATUS", "DONE", "ELAPSED", "REMAINING", "KEY", "ERROR")


async def ops(*, running: bool = False, limit: Limit = 50, as_json: Json = False, common: Given) -> None:
    """List operations of all engines, the newest first.

    What takes less than a second is listed when it has ended.

    Args:
        running: Only those that are under way.
    """
    from bdr.catalog import operation

    async with catalog(common.settings()) as database, database.reading() as connection:
        rows = await operation.latest(connection, limit, running=running)
    if as_json:
        emit_json([_as_json(row) for row in rows])
    else:
        emit_table(_COLUMNS, map(_cells, rows))


async def stats(*, as_json: Json = False, common: Given) -> None:
    """Show how operations ended and what they moved, ever."""
    import uuid

    from bdr.manager.operations import Operations

    settings = common.settings()
    async with catalog(settings) as database:
        # Only asked, so it is nobody's: no record is written under this id.
        found = asdict(await Operations(database, uuid.UUID(int=0), settings.operations.progress_interval).stats())
    if as_json:
        emit_json(found)
    else:
        emit_fields((name.replace("_", " "), _counted(name, value)) for name, value in found.items())


def _counted(name: str, value: int) -> str:
    return f"{value} ({size(value)})" if "bytes" in name else str(value)


def _cells(row: "AnyRow") -> tuple[str, ...]:
    from bdr.manager.operations import as_progress

    progress = as_progress(row)
    percentage = progress.completion_percentage
    return (
        moment(progress.started_at),
        progress.operation_type,
        progress.status,
        size(progress.processed_bytes) if percentage is None else f"{percentage:.0f}%",
        length(progress.elapsed),
        length(progress.estimated_remaining_time),
        row.file_key or NOTHING,
        progress.error or NOTHING,
    )


def _as_json(row: "AnyRow") -> dict[str, Any]:
    from bdr.manager.operations import as_progress

    progress = as_progress(row)
    remaining = progress.estimated_remaining_time
    return {
        "operation_id": str(progress.operation_id),
        "operation_type": progress.operation_type,
        "status": progress.status,
        "file_key": row.file_key,
        "namespace": row.namespace,
        "instance_id": str(row.instance_id),
        "total_bytes": progress.total_bytes,
        "processed_bytes": progress.processed_bytes,
        "completion_percentage": progress.completion_percentage,
        "elapsed_seconds": progress.elapsed.total_seconds(),
        "remaining_seconds": None if remaining is None else remaining.total_seconds(),
        "started_at": progress.started_at.isoformat(),
        "finished_at": None if row.finished_at is None else row.finished_at.isoformat(),
        "error": progress.error,
        "detail": row.detail,
    }
