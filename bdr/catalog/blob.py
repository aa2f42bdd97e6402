"""Blobs: who owns an object, from before its first byte until after its last.

Deadlines decide. A `pending` row belongs to its upload until `next_attempt_at`, a `deleting` row to its deleter; after
that any reaper may claim it. Both claims take FOR UPDATE SKIP LOCKED, so of two reapers each row goes to one, and a
row that its upload is just publishing goes to neither.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    FromClause,
    Index,
    Interval,
    LargeBinary,
    Select,
    Text,
    UniqueConstraint,
    Uuid,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.dml import ReturningUpdate

from bdr.catalog.base import Base, Moment, asked_for, storable

PENDING: Final = "pending"
LIVE: Final = "live"
DELETING: Final = "deleting"
QUARANTINED: Final = "quarantined"


class Blob(Base):
    """One object in a storage."""

    __tablename__ = "blob"
    __table_args__ = (
        # The target of the reference's foreign key: only a live blob can be referenced. The state is in front, so that
        # live blobs are added at one end of their range; beside its `pending` entry each would split a page.
        UniqueConstraint("state", "blob_id"),
        UniqueConstraint("storage_name", "object_path"),
        CheckConstraint("state IN ('pending', 'live', 'deleting', 'quarantined')", name="state"),
        CheckConstraint("(state IN ('pending', 'deleting')) = (next_attempt_at IS NOT NULL)", name="deadline"),
        CheckConstraint("state <> 'live' OR (size IS NOT NULL AND checksum IS NOT NULL)", name="live_is_complete"),
        CheckConstraint("size >= 0", name="size"),
        CheckConstraint("octet_length(checksum) = 32", name="checksum"),
        CheckConstraint("attempts >= 0", name="attempts"),
        # Of the few rows that are not live. The state is in front of the deadline, so that no claim reads through the
        # backlog of another.
        Index(
            "ix_blob_storage_name_state_next_attempt_at",
            "storage_name",
            "state",
            "next_attempt_at",
            postgresql_where=text("state <> 'live'"),
        ),
        # No room for HOT updates: what changes is the state, which is in an index.
        {"comment": "One row for each object in a storage, from before its first byte until after its last."},
    )

    blob_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, comment="UUIDv7; never used again.")
    storage_name: Mapped[str] = mapped_column(
        Text, ForeignKey("bdr.storage.name"), comment="The storage that holds the object."
    )
    # By bytes, whatever the database's locale: so the paths of one folder are one range of the index.
    object_path: Mapped[str] = mapped_column(
        Text(collation="C"), comment="Path below the storage's root; written at most once."
    )
    state: Mapped[str] = mapped_column(
        Text, comment="pending (being uploaded), live, deleting, or quarantined (deletes failed; a person decides)."
    )
    size: Mapped[int | None] = mapped_column(BigInteger, comment="Bytes; null until it is live.")
    checksum: Mapped[bytes | None] = mapped_column(LargeBinary, comment="SHA-256 of the bytes; null until it is live.")
    created_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="When the upload was reserved.")
    instance_id: Mapped[uuid.UUID] = mapped_column(Uuid, comment="The engine instance that uploaded it.")
    attempts: Mapped[int] = mapped_column(server_default=text("0"), comment="How often a delete was begun.")
    next_attempt_at: Mapped[Moment | None] = mapped_column(
        comment="Until then the row belongs to its upload or deleter; from then on a reaper may claim it."
    )
    last_error: Mapped[str | None] = mapped_column(Text, comment="Why the last delete, or the upload, failed.")


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place for one upload: its row is `pending` until it is published or its deadline passes."""

    blob_id: uuid.UUID
    storage_name: str
    object_path: str
    instance_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class ClaimedBlob:
    """An object to delete.

    Attributes:
        deadline: until when it is ours. It tells this claim from every later one, and from a row that was given another
            deadline, or inserted anew, because something was written meanwhile.
    """

    blob_id: uuid.UUID
    storage_name: str
    object_path: str
    deadline: datetime
    size: int | None


@dataclass(frozen=True, slots=True)
class FailedDelete:
    """A claimed object that could not be deleted, and why."""

    blob: ClaimedBlob
    error: str


def _after(name: str) -> Any:
    return func.now() + bindparam(name, type_=Interval())


def _times(interval: Any, factor: Any) -> Any:
    # With its precedence: by default an operator made here binds loosest, and a sum would lose its parentheses.
    return interval.op("*", precedence=8, return_type=Interval())(factor)


def _row(reservation: Reservation) -> Mapping[str, Any]:
    return {
        "blob_id": reservation.blob_id,
        "storage_name": reservation.storage_name,
        "object_path": reservation.object_path,
        "instance_id": reservation.instance_id,
    }


_PLACES = asked_for("asked", blob_id=Uuid(), storage_name=Text(), object_path=Text(), instance_id=Uuid())
_PENDING: dict[str, Any] = {
    **{column.name: column for column in _PLACES.c},
    "state": literal_column(f"'{PENDING}'"),
    "next_attempt_at": _after("lease"),
}
RESERVE = insert(Blob).from_select(list(_PENDING), select(*_PENDING.values()).select_from(_PLACES))
# Rows in key order: a renewal and a reaper's claim, or two renewals, never wait for each other in a circle.
_STILL_PENDING = (
    select(Blob.blob_id)
    .where(Blob.blob_id == func.any(bindparam("blob_ids")), Blob.state == PENDING)
    .order_by(Blob.blob_id)
    .with_for_update()
    .cte("still_pending")
)
RENEW = (
    update(Blob)
    .where(Blob.blob_id == _STILL_PENDING.c.blob_id)
    .values(next_attempt_at=_after("lease"))
    .returning(Blob.blob_id)
)
GIVE_BACK = delete(Blob).where(Blob.blob_id == _STILL_PENDING.c.blob_id)
PUBLISH = (
    update(Blob)
    .where(Blob.blob_id == bindparam("id"), Blob.state == PENDING)
    .values(state=LIVE, size=bindparam("bytes"), checksum=bindparam("digest"), next_attempt_at=null())
)
ABANDON = (
    update(Blob)
    .where(Blob.blob_id == bindparam("id"), Blob.state.in_((PENDING, DELETING)))
    .values(state=DELETING, next_attempt_at=_after("grace"), last_error=bindparam("why"))
)
READOPT = insert(Blob).values(state=DELETING, next_attempt_at=_after("grace"), last_error=bindparam("why"))


def _due(state: str, name: str) -> Select[Any]:
    return (
        select(Blob.blob_id)
        .where(
            Blob.storage_name == bindparam("storage"),
            # A literal, no parameter: the planner has to see that it is not 'live' to use the index.
            Blob.state == literal_column(f"'{state}'"),
            Blob.next_attempt_at <= func.now(),
        )
        .order_by(Blob.next_attempt_at)
        .limit(bindparam("batch"))
        .with_for_update(skip_locked=True)
    )


_STRANDED = _due(PENDING, "stranded").cte("stranded")
CLAIM_STRANDED = (
    update(Blob)
    .where(Blob.blob_id == _STRANDED.c.blob_id)
    .values(state=DELETING, next_attempt_at=_after("grace"), last_error="the upload did not finish by its deadline")
    .returning(Blob.blob_id)
)
_DUE = _due(DELETING, "due").cte("due")
CLAIM_DUE: ReturningUpdate[*tuple[Any, ...]] = (
    update(Blob)
    .where(Blob.blob_id == _DUE.c.blob_id)
    .values(attempts=Blob.attempts + 1, next_attempt_at=_after("lease"))
    .returning(Blob.blob_id, Blob.storage_name, Blob.object_path, Blob.next_attempt_at, Blob.size)
)


def _still_claimed(asked: FromClause, *columns: ColumnElement[Any]) -> Any:
    """The rows of `asked` that are still its own: who claimed a row only later, or not at all, changes nothing."""
    return (
        select(Blob.blob_id, *columns)
        .join_from(Blob, asked, Blob.blob_id == asked.c.blob_id)
        .where(Blob.state == DELETING, Blob.next_attempt_at == asked.c.deadline)
        .order_by(Blob.blob_id)
        .with_for_update(of=Blob)
        .cte("claimed")
    )


_DONE = _still_claimed(asked_for("asked", blob_id=Uuid(), deadline=TIMESTAMP(timezone=True)))
FINISH = delete(Blob).where(Blob.blob_id == _DONE.c.blob_id).returning(Blob.blob_id)

_ASKED = asked_for("asked", blob_id=Uuid(), deadline=TIMESTAMP(timezone=True), error=Text())
_CLAIMED = _still_claimed(_ASKED, _ASKED.c.error)
_EXHAUSTED = Blob.attempts >= bindparam("max_attempts", type_=BigInteger())
_DOUBLED = func.power(2, func.least(Blob.attempts - 1, 30))
_JITTER = 0.75 + func.random() / 4
_BACKOFF = _times(
    func.least(_times(bindparam("backoff", type_=Interval()), _DOUBLED), bindparam("backoff_max", type_=Interval())),
    _JITTER,
)
POSTPONE = (
    update(Blob)
    .where(Blob.blob_id == _CLAIMED.c.blob_id)
    .values(
        last_error=_CLAIMED.c.error,
        state=case((_EXHAUSTED, QUARANTINED), else_=DELETING),
        next_attempt_at=case((_EXHAUSTED, null()), else_=func.now() + _BACKOFF),
    )
    .returning(Blob.blob_id, Blob.state)
)
HAND_BACK = (
    update(Blob)
    .where(Blob.blob_id == _CLAIMED.c.blob_id)
    .values(last_error=_CLAIMED.c.error, attempts=Blob.attempts - 1, next_attempt_at=_after("backoff"))
    .returning(Blob.blob_id)
)


async def reserve(connection: AsyncConnection, reservations: Sequence[Reservation], lease: timedelta) -> None:
    """Insert `pending` rows that belong to their uploads for `lease`."""
    await connection.execute(RESERVE, places(reservations, lease))


def places(reservations: Sequence[Reservation], lease: timedelta) -> dict[str, Any]:
    """What RESERVE takes: an array for each column."""
    columns = {f"asked_{name}": [getattr(one, name) for one in reservations] for name in Reservation.__slots__}
    return columns | {"lease": lease}


async def renew(connection: AsyncConnection, blob_ids: Sequence[uuid.UUID], lease: timedelta) -> set[uuid.UUID]:
    """Give uploads another `lease`; those not in the answer were claimed by a reaper and must stop."""
    renewed = await connection.execute(RENEW, {"blob_ids": sorted(blob_ids), "lease": lease})
    return set(renewed.scalars())


async def give_back(connection: AsyncConnection, blob_ids: Sequence[uuid.UUID]) -> None:
    """Delete rows for which nothing was written; a reaper that claimed one before deletes it itself."""
    await connection.execute(GIVE_BACK, {"blob_ids": sorted(blob_ids)})


async def lock_pending(connection: AsyncConnection, blob_id: uuid.UUID) -> bool:
    """Lock the row for the transaction of `connection`; False when its snapshot is older than the row.

    While the lock is held every reaper skips the row, so an upload inside a caller's transaction needs no renewal.
    """
    found = await connection.execute(
        select(Blob.blob_id).where(Blob.blob_id == blob_id, Blob.state == PENDING).with_for_update()
    )
    return found.first() is not None


async def publish(connection: AsyncConnection, blob_id: uuid.UUID, size: int, checksum: bytes) -> bool:
    """Turn `pending` into `live`; False when a reaper claimed the row first.

    Publish and claim both need the row's lock. Whoever has it first wins: the claim skips a locked row, and a publish
    that waited for the claim finds the state changed and no row to update.
    """
    done = await connection.execute(PUBLISH, {"id": blob_id, "bytes": size, "digest": checksum})
    return done.rowcount == 1


async def abandon(connection: AsyncConnection, blob_id: uuid.UUID, grace: timedelta, why: str) -> bool:
    """Have the row deleted after `grace`, whoever else is about to; False when it is live, quarantined or gone.

    A reaper may have claimed it, and found no object before the upload's write landed. Whoever gets the row first
    decides: this gives it another deadline, and the reaper's `finish` leaves it for the next claim; after `finish`
    there is no row to update, and the upload inserts it again.
    """
    done = await connection.execute(ABANDON, {"id": blob_id, "grace": grace, "why": storable(why)})
    return done.rowcount == 1


async def readopt(connection: AsyncConnection, reservation: Reservation, grace: timedelta, why: str) -> None:
    """Insert the row again as `deleting`: a write whose row is gone may still have left an object."""
    await connection.execute(READOPT, {**_row(reservation), "grace": grace, "why": storable(why)})


async def state_of(connection: AsyncConnection, blob_id: uuid.UUID) -> str | None:
    """The blob's state; None when there is no row."""
    state: str | None = await connection.scalar(select(Blob.state).where(Blob.blob_id == blob_id))
    return state


async def claim_stranded(connection: AsyncConnection, storage: str, grace: timedelta, batch: int) -> int:
    """Turn uploads past their deadline to `deleting`, due after `grace`: a PUT that was cut off may still land."""
    found = await connection.execute(CLAIM_STRANDED, {"storage": storage, "grace": grace, "batch": batch})
    return len(found.all())


async def claim_due(connection: AsyncConnection, storage: str, lease: timedelta, batch: int) -> list[ClaimedBlob]:
    """Claim objects to delete for `lease`; once that is committed, nobody else deletes them meanwhile."""
    found = await connection.execute(CLAIM_DUE, {"storage": storage, "lease": lease, "batch": batch})
    return [ClaimedBlob(*row) for row in found]


def _claims(claimed: Sequence[ClaimedBlob]) -> dict[str, Any]:
    return {
        "asked_blob_id": [one.blob_id for one in claimed],
        "asked_deadline": [one.deadline for one in claimed],
    }


def _failures(failed: Sequence[FailedDelete]) -> dict[str, Any]:
    return _claims([one.blob for one in failed]) | {"asked_error": [storable(one.error) for one in failed]}


async def finish(connection: AsyncConnection, claimed: Sequence[ClaimedBlob]) -> set[uuid.UUID]:
    """Delete the rows of objects that are gone from their storage; gives back those this call deleted."""
    return set((await connection.execute(FINISH, _claims(claimed))).scalars())


async def postpone(
    connection: AsyncConnection,
    failed: Sequence[FailedDelete],
    *,
    backoff: timedelta,
    backoff_max: timedelta,
    max_attempts: int,
) -> int:
    """Write down why deletes failed and when to try again; gives back how many were quarantined instead."""
    limits = {"backoff": backoff, "backoff_max": backoff_max, "max_attempts": max_attempts}
    found = await connection.execute(POSTPONE, {**_failures(failed), **limits})
    return sum(1 for row in found if row.state == QUARANTINED)


async def hand_back(connection: AsyncConnection, failed: Sequence[FailedDelete], backoff: timedelta) -> None:
    """Undo claims whose storage could not be reached: that is no fault of the objects, no attempt is used up."""
    await connection.execute(HAND_BACK, {**_failures(failed), "backoff": backoff})
