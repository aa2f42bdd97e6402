"""Operation records: what was stored, read, deleted and reaped, by whom, and how it ended.

Statistics are the totals plus the records still there. A total is only written when records are pruned, in the
statement that prunes them, so nothing is counted twice or lost.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Date,
    FromClause,
    Index,
    Interval,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    null,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import HOT_FILLFACTOR, AnyRow, Base, Moment, asked_for, in_order, storable
from bdr.catalog.reference import DeletedReference
from bdr.keys import new_id
from bdr.progress import OperationStatus

# What a file key is looked up for once its reference is gone, or before it is there.
_ENDS = "status = 'running' OR operation_type IN ('delete', 'cleanup', 'reap', 'fsck')"


class Operation(Base):
    """One operation of one engine."""

    __tablename__ = "operation"
    __table_args__ = (
        CheckConstraint("status IN ('running', 'succeeded', 'failed', 'cancelled')", name="status"),
        CheckConstraint("(status = 'running') = (finished_at IS NULL)", name="finished"),
        CheckConstraint("total_bytes >= 0", name="total_bytes"),
        CheckConstraint("processed_bytes >= 0", name="processed_bytes"),
        Index("ix_operation_started_at", "started_at"),
        Index("ix_operation_running", "instance_id", postgresql_where=text("status = 'running'")),
        Index("ix_operation_end_of_file_key", "file_key", postgresql_where=text(_ENDS)),
        {"comment": "One row for each store, delete and reap, and each retrieve that reached a storage."}
        | HOT_FILLFACTOR,
    )

    operation_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, comment="The caller's, or a new UUIDv7.")
    operation_type: Mapped[str] = mapped_column(
        Text, comment="store, retrieve, delete, cleanup, reap, reap_pass, fsck or fsck_repair."
    )
    file_key: Mapped[str | None] = mapped_column(Text, comment="The reference it was about, when there was one.")
    namespace: Mapped[str | None] = mapped_column(Text, comment="That reference's namespace.")
    instance_id: Mapped[uuid.UUID] = mapped_column(Uuid, comment="The engine that did it.")
    total_bytes: Mapped[int | None] = mapped_column(BigInteger, comment="Bytes to process; null is unknown.")
    processed_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), comment="Bytes so far.")
    status: Mapped[str] = mapped_column(Text, comment="running (for what takes long), succeeded, failed, cancelled.")
    error: Mapped[str | None] = mapped_column(Text, comment="Why it failed.")
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB, comment="More, such as the rule of a reap.")
    started_at: Mapped[Moment] = mapped_column(comment="When it began.")
    updated_at: Mapped[Moment] = mapped_column(comment="When this row was last written.")
    finished_at: Mapped[Moment | None] = mapped_column(comment="When it ended; null while it runs.")


class OperationTotal(Base):
    """What pruned records amounted to."""

    __tablename__ = "operation_total"
    __table_args__ = {"comment": "Sums of the operation records that were pruned."}  # noqa: RUF012 - SQLAlchemy reads it as is

    day: Mapped[date] = mapped_column(Date, primary_key=True, comment="UTC day on which the operations began.")
    instance_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, comment="The engine that did them.")
    operation_type: Mapped[str] = mapped_column(Text, primary_key=True, comment="As in operation.")
    status: Mapped[str] = mapped_column(Text, primary_key=True, comment="As in operation; never running.")
    operations: Mapped[int] = mapped_column(BigInteger, comment="How many.")
    bytes: Mapped[int] = mapped_column(BigInteger, comment="Bytes they processed.")


@dataclass(frozen=True, slots=True)
class Record:
    """One operation to write down; only the database's clock gives moments, so here are lengths of time.

    Attributes:
        elapsed: how long it took, or has taken so far.
        ago: how long ago that was, when it had to wait to be written.
    """

    operation_id: uuid.UUID
    operation_type: str
    instance_id: uuid.UUID
    status: str
    elapsed: timedelta = timedelta(0)
    ago: timedelta = timedelta(0)
    file_key: str | None = None
    namespace: str | None = None
    total_bytes: int | None = None
    processed_bytes: int = 0
    error: str | None = None
    detail: dict[str, Any] | None = field(default=None)


_NOW = func.clock_timestamp()


def over_running(statement: Any) -> Any:
    """The insert of a record, over its own `running` row if there is one."""
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[Operation.operation_id],
        set_={
            "status": new.status,
            "processed_bytes": new.processed_bytes,
            "total_bytes": new.total_bytes,
            "file_key": func.coalesce(new.file_key, Operation.file_key),
            "error": new.error,
            "detail": new.detail,
            "updated_at": new.updated_at,
            "finished_at": new.finished_at,
        },
        # An id that somebody else used, or whose operation has ended, is not ours to write.
        where=(Operation.status == OperationStatus.RUNNING) & (Operation.instance_id == new.instance_id),
    )


_GIVEN = asked_for(
    "given",
    operation_id=Uuid(),
    operation_type=Text(),
    file_key=Text(),
    namespace=Text(),
    instance_id=Uuid(),
    total_bytes=BigInteger(),
    processed_bytes=BigInteger(),
    status=Text(),
    error=Text(),
    detail=Text(),
    elapsed=Interval(),
    ago=Interval(),
)
_ENDED_AT = _NOW - _GIVEN.c.ago
_ENDED: dict[str, Any] = {
    **{name: column for name, column in _GIVEN.c.items() if name not in ("elapsed", "ago")},
    "detail": cast(_GIVEN.c.detail, JSONB),
    "started_at": _ENDED_AT - _GIVEN.c.elapsed,
    "updated_at": _NOW,
    "finished_at": _ENDED_AT,
}
# One statement for all: each read of a storage leaves a record. In id order, as whoever else locks running ones.
WRITE_ENDED = over_running(
    insert(Operation).from_select(list(_ENDED), select(*_ENDED.values()).order_by(_GIVEN.c.operation_id))
)
_STILL_RUNNING: dict[str, Any] = _ENDED | {"finished_at": null()}
WRITE_RUNNING = over_running(
    insert(Operation).from_select(
        list(_STILL_RUNNING), select(*_STILL_RUNNING.values()).order_by(_GIVEN.c.operation_id)
    )
)
# Of references that were deleted: very many at once, and most of each record is the same for all of them.
_DELETED = asked_for(
    "deleted", operation_id=Uuid(), file_key=Text(), namespace=Text(), file_size=BigInteger(), detail=Text()
)
_DELETION: dict[str, Any] = {
    "operation_id": _DELETED.c.operation_id,
    "operation_type": bindparam("type", type_=Text()),
    "file_key": _DELETED.c.file_key,
    "namespace": _DELETED.c.namespace,
    "instance_id": bindparam("instance", type_=Uuid()),
    "total_bytes": _DELETED.c.file_size,
    "processed_bytes": _DELETED.c.file_size,
    "status": literal_column(f"'{OperationStatus.SUCCEEDED}'"),
    "detail": cast(_DELETED.c.detail, JSONB),
    "started_at": _NOW,
    "updated_at": _NOW,
    "finished_at": _NOW,
}
WRITE_DELETED = insert(Operation).from_select(list(_DELETION), select(*_DELETION.values()).select_from(_DELETED))


def _prune(condition: Any) -> Any:
    old = (
        select(Operation.operation_id)
        .where(Operation.status != literal_column("'running'"), condition)
        .order_by(Operation.started_at)
        .limit(bindparam("batch"))
        .with_for_update(skip_locked=True)
        # As a CTE it runs once; a subquery that is run again would lock other rows than those it gave before.
        .cte("old")
    )
    pruned = (
        delete(Operation)
        .where(Operation.operation_id == old.c.operation_id)
        .returning(
            cast(func.timezone("UTC", Operation.started_at), Date).label("day"),
            Operation.instance_id,
            Operation.operation_type,
            Operation.status,
            Operation.processed_bytes,
        )
        .cte("pruned")
    )
    groups = [pruned.c.day, pruned.c.instance_id, pruned.c.operation_type, pruned.c.status]
    # In key order: two engines that prune at once lock the same totals in the same order.
    sums = (
        select(*groups, func.count().label("operations"), func.sum(pruned.c.processed_bytes).label("bytes"))
        .group_by(*groups)
        .order_by(*groups)
    )
    add = insert(OperationTotal).from_select([*OperationTotal.__table__.c.keys()], sums)
    added: Any = add.on_conflict_do_update(
        index_elements=["day", "instance_id", "operation_type", "status"],
        set_={
            "operations": OperationTotal.operations + add.excluded.operations,
            "bytes": OperationTotal.bytes + add.excluded.bytes,
        },
    ).returning(literal_column("1"))
    written = added.cte("written")
    return select(
        select(func.count()).select_from(pruned).scalar_subquery(),
        select(func.count()).select_from(written).scalar_subquery(),
    )


PRUNE_OLD = _prune(Operation.started_at < func.now() - bindparam("age", type_=Interval()))
_NEWEST_TO_GO = (
    select(Operation.started_at, Operation.operation_id)
    .where(Operation.status != literal_column("'running'"))
    # Two may have begun in one microsecond.
    .order_by(Operation.started_at.desc(), Operation.operation_id.desc())
    .offset(bindparam("keep"))
    .limit(1)
)
PRUNE_BUT_NEWEST = _prune(tuple_(Operation.started_at, Operation.operation_id) <= _NEWEST_TO_GO.scalar_subquery())

_BOTH = union_all(
    select(Operation.status, func.count().label("n"), func.sum(Operation.processed_bytes).label("b")).group_by(
        Operation.status
    ),
    select(OperationTotal.status, func.sum(OperationTotal.operations), func.sum(OperationTotal.bytes)).group_by(
        OperationTotal.status
    ),
).subquery()
# One statement, so one snapshot: a prune between two of them would be counted twice or not at all.
TOTALS = select(_BOTH.c.status, cast(func.sum(_BOTH.c.n), BigInteger), cast(func.sum(_BOTH.c.b), BigInteger)).group_by(
    _BOTH.c.status
)


def _with_elapsed(records: FromClause) -> Select[*tuple[Any, ...]]:
    columns = records.c
    elapsed = func.coalesce(columns.finished_at, _NOW) - columns.started_at
    return select(*columns, elapsed.label("elapsed"))


_RECORD = _with_elapsed(Operation.__table__)
# Apart from the rest: else the planner expects to meet enough of them among the newest records, and reads all records
# when there are fewer. Those that run have an index of their own, and are few.
_RUNNING = (
    select(Operation.__table__)
    .where(Operation.status == literal_column("'running'"))
    .cte("running")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
NEWEST_ENDS = (
    _RECORD.ext(distinct_on(Operation.file_key))
    # In brackets, which SQLAlchemy does not put around a text: its OR would make it anybody's end.
    .where(Operation.file_key == func.any(bindparam("keys", type_=ARRAY(Text()))), text(f"({_ENDS})"))
    .where(Operation.operation_type != "retrieve")
    .order_by(Operation.file_key, Operation.started_at.desc())
)
LATEST = _RECORD.order_by(Operation.started_at.desc()).limit(bindparam("batch"))
LATEST_RUNNING = _with_elapsed(_RUNNING).order_by(_RUNNING.c.started_at.desc()).limit(bindparam("batch"))


def _columns(records: Sequence[Record]) -> dict[str, list[Any]]:
    columns = {column.name: [getattr(one, column.name) for one in records] for column in _GIVEN.c}
    # An error may come from anybody's code; one that cannot be held must not keep its neighbours from being written.
    columns["error"] = [None if error is None else storable(error) for error in columns["error"]]
    columns["detail"] = [None if detail is None else json.dumps(detail) for detail in columns["detail"]]
    return {f"asked_{name}": values for name, values in columns.items()}


async def write_ended(connection: AsyncConnection, records: Sequence[Record]) -> None:
    """Write records of operations that have ended, over their `running` rows where there are any."""
    if records:
        await connection.execute(WRITE_ENDED, _columns(records))


async def write_deleted(
    connection: AsyncConnection,
    operation_type: str,
    instance_id: uuid.UUID,
    references: Sequence[AnyRow | DeletedReference],
    details: Sequence[str],
) -> None:
    """Write a record for each reference that this transaction has deleted, with its detail as JSON."""
    if not references:
        return
    values = {
        "type": operation_type,
        "instance": instance_id,
        "asked_operation_id": [new_id() for _ in references],
        "asked_file_key": [one.file_key for one in references],
        "asked_namespace": [one.namespace for one in references],
        "asked_file_size": [one.file_size for one in references],
        "asked_detail": details,
    }
    await connection.execute(WRITE_DELETED, values)


async def write_running(connection: AsyncConnection, records: Sequence[Record]) -> None:
    """Write how far operations are that take long; in id order, so that two writers cannot deadlock."""
    if records:
        await connection.execute(WRITE_RUNNING, _columns(records))


async def prune_old(connection: AsyncConnection, age: timedelta, batch: int) -> int:
    """Move at most `batch` records that began longer than `age` ago into the totals."""
    return int((await connection.execute(PRUNE_OLD, {"age": age, "batch": batch})).scalar_one())


async def prune_but_newest(connection: AsyncConnection, keep: int, batch: int) -> int:
    """Move at most `batch` of the ended records into the totals, all but the newest `keep`."""
    return int((await connection.execute(PRUNE_BUT_NEWEST, {"keep": keep, "batch": batch})).scalar_one())


async def totals(connection: AsyncConnection) -> dict[str, tuple[int, int]]:
    """Count and bytes of all operations ever, by status."""
    return {status: (count, size) for status, count, size in await connection.execute(TOTALS)}


async def find(connection: AsyncConnection, operation_id: uuid.UUID) -> AnyRow | None:
    """One record with the time it has taken so far, on the database's clock."""
    return (await connection.execute(_RECORD.where(Operation.operation_id == operation_id))).one_or_none()


async def newest_ends(connection: AsyncConnection, file_keys: Sequence[str]) -> dict[str, AnyRow]:
    """By key the newest record that tells why there is no reference: it was deleted, or is being stored just now."""
    found = await connection.execute(NEWEST_ENDS, {"keys": in_order(file_keys)})
    return {row.file_key: row for row in found}


async def latest(connection: AsyncConnection, batch: int, *, running: bool = False) -> Sequence[AnyRow]:
    """The newest records, or only those still running."""
    return (await connection.execute(LATEST_RUNNING if running else LATEST, {"batch": batch})).all()
