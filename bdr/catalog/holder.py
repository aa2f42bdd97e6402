"""Named holders: registrations that say who they are for, and that let go when that one is gone.

A named registration is one of its reference's `ref_count` and one of its `holder_count`. Whoever acquires, renews or
lets go, the reaper too, locks the reference first, in key order, and only then looks at its holders: for one reference
these come one after the other, as they do with deletes, which lock the reference and take its holders with it.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Interval,
    Text,
    Update,
    Uuid,
    bindparam,
    case,
    cast,
    delete,
    false,
    func,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import Base, Moment, asked_keys, in_order
from bdr.catalog.count import ACCESSED, Counted, locked_references
from bdr.catalog.instance import EngineInstance
from bdr.catalog.reference import Reference

MAX_HOLDER_LENGTH = 256


class ReferenceHolder(Base):
    """Who holds a reference by name."""

    __tablename__ = "reference_holder"
    __table_args__ = (
        CheckConstraint(f"length(holder) BETWEEN 1 AND {MAX_HOLDER_LENGTH}", name="holder"),
        Index("ix_reference_holder_holder_file_key", "holder", "file_key"),
        Index(
            "ix_reference_holder_lease_expires_at",
            "lease_expires_at",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
        ),
        Index("ix_reference_holder_instance_id", "instance_id", postgresql_where=text("instance_id IS NOT NULL")),
        {"comment": "One row for each named registration; each is one of its reference's ref_count."},
    )

    file_key: Mapped[str] = mapped_column(
        Text(collation="C"),
        ForeignKey("bdr.binary_data_reference.file_key", ondelete="CASCADE"),
        primary_key=True,
        comment="The reference that is held.",
    )
    holder: Mapped[str] = mapped_column(Text, primary_key=True, comment="Who holds it, as the caller named it.")
    instance_id: Mapped[uuid.UUID | None] = mapped_column(
        Uuid, comment="It lets go when this engine instance stops; null when it is bound to none."
    )
    acquired_at: Mapped[Moment] = mapped_column(
        server_default=func.clock_timestamp(), comment="When it was first registered."
    )
    lease_expires_at: Mapped[Moment | None] = mapped_column(
        comment="It lets go then, unless it is registered again before; null when it has no lease."
    )


@dataclass(frozen=True, slots=True)
class Holding:
    """One named registration; `instance_id` and `lease_expires_at` are None when it is not bound, or has no lease."""

    file_key: str
    holder: str
    instance_id: uuid.UUID | None
    acquired_at: datetime
    lease_expires_at: datetime | None


def _changed(by: Any, source: Any) -> Update:
    return (
        update(Reference)
        .where(Reference.file_key == source.c.file_key)
        .values(ref_count=Reference.ref_count + by, holder_count=Reference.holder_count + by, last_access_at=ACCESSED)
    )


def _counted(locked: Any, source: Any, by: int, after: Any) -> Any:
    changed = (
        _changed(by, source)
        .returning(Reference.file_key, Reference.ref_count, Reference.zero_ref_retention)
        .cte("changed")
    )
    return select(
        locked.c.file_key,
        locked.c.ref_count.label("before"),
        after(changed.c.ref_count).label("after"),
        changed.c.zero_ref_retention,
    ).select_from(locked.outerjoin(changed, changed.c.file_key == locked.c.file_key))


_HOLDER = bindparam("of_holder", type_=Text())
_TERMS: dict[str, Any] = {
    "instance_id": bindparam("bound_to", type_=Uuid()),
    "lease_expires_at": func.clock_timestamp() + bindparam("lease", type_=Interval()),
}


def _acquiring(*, skip_locked: bool = False) -> Any:
    locked = locked_references(asked_keys(), skip_locked=skip_locked)
    named = insert(ReferenceHolder).from_select(
        ["file_key", "holder", *_TERMS], select(locked.c.file_key, _HOLDER, *_TERMS.values())
    )
    new = (literal_column("reference_holder.xmax") == literal_column("0")).label("new")
    # A registration by the same name that committed while this one waited for the lock is not in this statement's
    # snapshot; the conflict finds it all the same, and sets its terms anew. `xmax` is zero only in a row that was
    # inserted.
    added = (
        named.on_conflict_do_update(
            index_elements=[ReferenceHolder.file_key, ReferenceHolder.holder],
            set_={term: named.excluded[term] for term in _TERMS},
        )
        .returning(ReferenceHolder.file_key, new)
        .cte("added")
    )
    counted = select(added.c.file_key).where(added.c.new).cte("new")
    return _counted(locked, counted, 1, lambda after: func.coalesce(after, locked.c.ref_count))


def _letting_go(*, skip_locked: bool = False) -> Any:
    locked = locked_references(asked_keys(), skip_locked=skip_locked)
    let_go = (
        delete(ReferenceHolder)
        .where(ReferenceHolder.file_key == locked.c.file_key, ReferenceHolder.holder == _HOLDER)
        .returning(ReferenceHolder.file_key)
        .cte("let_go")
    )
    return _counted(locked, let_go, -1, lambda after: after)


ACQUIRE = _acquiring()
ACQUIRE_FREE = _acquiring(skip_locked=True)
LET_GO = _letting_go()
LET_GO_FREE = _letting_go(skip_locked=True)

_HELD = (
    select(Reference.file_key)
    .join_from(Reference, ReferenceHolder, ReferenceHolder.file_key == Reference.file_key)
    .where(ReferenceHolder.holder == _HOLDER)
    .order_by(Reference.file_key)
    .with_for_update(of=Reference)
    .cte("held")
)
_ALL_LET_GO = (
    delete(ReferenceHolder)
    .where(ReferenceHolder.file_key == _HELD.c.file_key, ReferenceHolder.holder == _HOLDER)
    .returning(ReferenceHolder.file_key)
    .cte("let_go")
)
LET_ALL_GO = _changed(-1, _ALL_LET_GO).returning(Reference.file_key, Reference.ref_count, Reference.zero_ref_retention)

_EXPIRED = ReferenceHolder.lease_expires_at <= func.now()


def _has_stopped(instance_id: Any) -> Any:
    # A scalar, which the planner never makes a join of: joined, all instances that ever stopped would be read. One
    # whose row was pruned has stopped long ago.
    lives = select(EngineInstance.stopped_at.is_(None)).where(EngineInstance.instance_id == instance_id)
    return lives.scalar_subquery().is_not(true())


# A CASE, through which the planner does not see: else it would read an index of all that are bound.
_OF_STOPPED = case((ReferenceHolder.instance_id.is_not(None), _has_stopped(ReferenceHolder.instance_id)), else_=false())


def _claim(held: Any, holders: Any) -> Any:
    return (
        select(Reference.file_key)
        .select_from(held.join(Reference, Reference.file_key == holders.c.file_key))
        .limit(bindparam("batch"))
        .with_for_update(of=Reference, skip_locked=True)
    )


def _next_bound(*after: Any) -> Any:
    bound_to = ReferenceHolder.instance_id
    return select(bound_to).where(bound_to.is_not(None), *after).order_by(bound_to).limit(1)


# From one instance in the index to the next: a pass that finds nothing to let go has read a row for each instance that
# holds something, however much that is, and of the instances that stopped only those.
_FIRST = select(_next_bound().scalar_subquery().label("instance_id")).cte("bound", recursive=True)
_BOUND = _FIRST.union_all(
    select(_next_bound(ReferenceHolder.instance_id > _FIRST.c.instance_id).scalar_subquery()).where(
        _FIRST.c.instance_id.is_not(None)
    )
)
_OVER = select(ReferenceHolder.file_key).where(_EXPIRED).subquery("over")
CLAIM_EXPIRED_LEASES = _claim(_OVER, _OVER)
_GONE = (
    select(_BOUND.c.instance_id)
    .where(_BOUND.c.instance_id.is_not(None), _has_stopped(_BOUND.c.instance_id))
    .subquery("gone")
)
# Of each by itself: joined, all that is bound to any instance would be read. And as a range, in order: with `=` and a
# LIMIT the planner expects to meet enough of them soon and reads the table from its front. The bounds of a range it
# cannot know to be equal, and only the index gives their order without a sort.
_OF_EACH = (
    select(ReferenceHolder.file_key)
    .where(ReferenceHolder.instance_id.between(_GONE.c.instance_id, _GONE.c.instance_id))
    .order_by(ReferenceHolder.instance_id)
)
_OF_GONE = _OF_EACH.limit(bindparam("batch")).lateral("of_gone")
CLAIM_OF_STOPPED = _claim(_GONE.join(_OF_GONE, true()), _OF_GONE)
_LAPSED = (
    delete(ReferenceHolder)
    .where(ReferenceHolder.file_key == func.any(bindparam("keys")), or_(_EXPIRED, _OF_STOPPED))
    .returning(ReferenceHolder.file_key)
    .cte("lapsed")
)
_SUMS = select(_LAPSED.c.file_key, cast(func.count(), BigInteger).label("n")).group_by(_LAPSED.c.file_key).cte("sums")
LAPSE = _changed(-_SUMS.c.n, _SUMS).returning(_SUMS.c.n)

FORGET = delete(ReferenceHolder).where(ReferenceHolder.file_key == func.any(bindparam("keys")))
_HOLDINGS = select(*ReferenceHolder.__table__.c)


async def acquire(
    connection: AsyncConnection,
    keys: Sequence[str],
    holder: str,
    *,
    lease: timedelta | None = None,
    instance_id: uuid.UUID | None = None,
    skip_locked: bool = False,
) -> Mapping[str, Counted]:
    """Register by name: counted once, however often; each time the lease and the instance are set anew.

    With `skip_locked` as `bdr.catalog.count.register`.
    """
    terms = {"of_holder": holder, "lease": lease, "bound_to": instance_id}
    return await _count(connection, ACQUIRE_FREE if skip_locked else ACQUIRE, keys, terms)


async def let_go(
    connection: AsyncConnection, keys: Sequence[str], holder: str, *, skip_locked: bool = False
) -> Mapping[str, Counted]:
    """Release by name; `after` is None where nothing of that name is held, and nothing changes then."""
    return await _count(connection, LET_GO_FREE if skip_locked else LET_GO, keys, {"of_holder": holder})


async def let_all_go(connection: AsyncConnection, holder: str) -> Mapping[str, Counted]:
    """Release all that is held by this name, in one statement; gives back what was.

    Two at once: the second waits for the first's locks, then finds the rows gone from under it and counts none twice.
    """
    found = await connection.execute(LET_ALL_GO, {"of_holder": holder})
    return {row.file_key: Counted(row.ref_count + 1, row.ref_count, row.zero_ref_retention) for row in found}


async def lapse(connection: AsyncConnection, batch: int) -> int:
    """Release holders whose lease is over or whose instance has stopped; gives back how many.

    At most `batch` of the one kind and of the other are looked at.

    READ COMMITTED, two statements. A renewal that is first holds the reference's lock, and the claim skips it. When
    the claim is first, a renewal waits, finds its row gone, and registers anew. The second statement's snapshot is
    newer than the locks: what it finds expired is, and nobody renews it before this commits.
    """
    released = 0
    for claim in (CLAIM_EXPIRED_LEASES, CLAIM_OF_STOPPED):
        keys = list((await connection.execute(claim, {"batch": batch})).scalars())
        if keys:
            released += sum((await connection.execute(LAPSE, {"keys": in_order(keys)})).scalars())
    return released


async def forget(connection: AsyncConnection, keys: Sequence[str]) -> None:
    """Delete the holders of references that the caller has locked and whose counts it sets to zero."""
    await connection.execute(FORGET, {"keys": in_order(keys)})


async def holders_of(connection: AsyncConnection, key: str, batch: int) -> list[Holding]:
    """Who holds a reference by name, at most `batch`, those first who have it longest."""
    query = _HOLDINGS.where(ReferenceHolder.file_key == key).order_by(ReferenceHolder.acquired_at).limit(batch)
    return [Holding(*row) for row in await connection.execute(query)]


async def held_by(connection: AsyncConnection, holder: str, batch: int) -> list[Holding]:
    """What is held by this name, at most `batch`."""
    query = _HOLDINGS.where(ReferenceHolder.holder == holder).order_by(ReferenceHolder.file_key).limit(batch)
    return [Holding(*row) for row in await connection.execute(query)]


async def _count(
    connection: AsyncConnection, statement: Any, keys: Sequence[str], values: Mapping[str, Any]
) -> dict[str, Counted]:
    found = await connection.execute(statement, {"asked_file_key": in_order(keys), **values})
    counted = {row.file_key: Counted(row.before, row.after, row.zero_ref_retention) for row in found}
    return dict.fromkeys(keys, Counted(None, None, None)) | counted
