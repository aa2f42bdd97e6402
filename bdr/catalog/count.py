"""Counting: register, release and touch, each one UPDATE that its row count decides.

All lock the rows they are about in key order first. Against a reaper's claim: whoever has the reference's lock first
wins. The claim skips a locked row; a count that waited for a claim finds no row, which is the typed error.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, FromClause, Text, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.base import asked_for, asked_keys
from bdr.catalog.database import Database
from bdr.catalog.prepared import Prepared
from bdr.catalog.reference import Reference

# `now()` is the start of the transaction, which in a caller's transaction may be long ago.
ACCESSED = func.greatest(Reference.last_access_at, func.clock_timestamp())


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of one key: `before` is None when there is no reference, `after` when nothing was changed."""

    before: int | None
    after: int | None
    zero_ref_retention: timedelta | None


@dataclass(frozen=True, slots=True)
class Tally:
    """What a change found and did; all of it None when somebody else had the reference locked.

    Attributes:
        before: the count that was found.
        free: how much of that releases without a name may take.
        after: the new count; None when nothing was changed.
    """

    before: int | None
    free: int | None
    after: int | None
    zero_ref_retention: timedelta | None


@dataclass(frozen=True, slots=True)
class Change:
    """What some registrations and releases together do to one reference, in the order in which they came.

    Attributes:
        net: their sum.
        low: the lowest that the sum was on the way, zero at most: what they take that must be there before.
    """

    net: int
    low: int


def locked_references(asked: FromClause, *, skip_locked: bool = False) -> Any:
    """A CTE that locks the references asked for, in key order, and reads their counts as they are then."""
    return (
        select(Reference.file_key, Reference.ref_count, Reference.holder_count)
        .join_from(Reference, asked, Reference.file_key == asked.c.file_key)
        .order_by(Reference.file_key)
        .with_for_update(of=Reference, skip_locked=skip_locked)
        .cte("locked")
    )


_ASKED = asked_for("asked", file_key=Text(), net=BigInteger(), low=BigInteger())


def _counting(*, skip_locked: bool = False) -> Any:
    locked = locked_references(_ASKED, skip_locked=skip_locked)
    # Counted from what was found under the lock, not from the row that the update finds: that is as old as the
    # statement, so a release that waited for a registration would take the zero from before it for the count.
    changed = (
        update(Reference)
        .where(
            Reference.file_key == locked.c.file_key,
            Reference.file_key == _ASKED.c.file_key,
            # Who registered by name also releases by name: these are not for others to give away.
            locked.c.ref_count - locked.c.holder_count + _ASKED.c.low >= 0,
        )
        .values(
            ref_count=locked.c.ref_count + _ASKED.c.net,
            # As it is. Constraints are checked on what would become of the row as the statement's snapshot has it,
            # before the server looks for a newer one: with the old number of holders beside the new count they fail.
            holder_count=locked.c.holder_count,
            last_access_at=ACCESSED,
        )
        .returning(Reference.file_key, Reference.ref_count, Reference.zero_ref_retention)
        .cte("changed")
    )
    # What is passed over was seen all the same, which tells it from what is not there.
    seen = select(Reference.file_key).join_from(Reference, _ASKED, Reference.file_key == _ASKED.c.file_key).subquery()
    found = seen.outerjoin(locked, locked.c.file_key == seen.c.file_key) if skip_locked else locked
    return select(
        (seen if skip_locked else locked).c.file_key,
        locked.c.ref_count.label("before"),
        (locked.c.ref_count - locked.c.holder_count).label("free"),
        changed.c.ref_count.label("after"),
        changed.c.zero_ref_retention,
    ).select_from(found.outerjoin(changed, changed.c.file_key == locked.c.file_key))


COUNT = _counting()
# By whether what is locked is passed over.
PREPARED = {False: Prepared(COUNT), True: Prepared(_counting(skip_locked=True))}

_READ = asked_keys()
# A reader never waits for a row that somebody else counts on: what is skipped here is tried again later.
_FREE = locked_references(_READ, skip_locked=True)
_TOUCHED = (
    update(Reference)
    .where(Reference.file_key == _FREE.c.file_key)
    .values(last_access_at=ACCESSED)
    .returning(Reference.file_key)
    .cte("touched")
)
TOUCH = (
    select(_READ.c.file_key)
    .join_from(_READ, Reference, Reference.file_key == _READ.c.file_key)
    .outerjoin(_TOUCHED, _TOUCHED.c.file_key == _READ.c.file_key)
    .where(_TOUCHED.c.file_key.is_(None))
)


async def count_by_itself(
    database: Database, changes: Callable[[], Mapping[str, Change]], *, skip_locked: bool = False
) -> dict[str, Tally]:
    """Apply changes in one statement that commits by itself; what is not in the answer is not there.

    With `skip_locked` it waits for nobody, and nothing is known of what somebody else has locked. `changes` is called
    once there is a connection.
    """
    found = await database.fetch(PREPARED[skip_locked], lambda: parameters(changes()))
    return {row["file_key"]: Tally(*(row[name] for name in Tally.__slots__)) for row in found}


async def register(connection: AsyncConnection, keys: Sequence[str]) -> Mapping[str, Counted]:
    """Add one to each key's count for each time it comes in `keys`; one answer per distinct key."""
    return await _count(connection, {key: Change(number, 0) for key, number in Counter(keys).items()})


async def release(connection: AsyncConnection, keys: Sequence[str]) -> Mapping[str, Counted]:
    """Take one from each key's count for each time it comes in `keys`, never below zero: then it stays as it was."""
    return await _count(connection, {key: Change(-number, -number) for key, number in Counter(keys).items()})


async def _count(connection: AsyncConnection, changes: Mapping[str, Change]) -> dict[str, Counted]:
    found = await connection.execute(COUNT, parameters(changes))
    counted = {row.file_key: Counted(row.before, row.after, row.zero_ref_retention) for row in found}
    return dict.fromkeys(changes, Counted(None, None, None)) | counted


def parameters(changes: Mapping[str, Change]) -> dict[str, Any]:
    """What the statements take, in key order."""
    # Each key once: `UPDATE … FROM` applies one that comes twice only once.
    ordered = sorted(changes)
    return {
        "asked_file_key": ordered,
        "asked_net": [changes[key].net for key in ordered],
        "asked_low": [changes[key].low for key in ordered],
    }


async def touch(connection: AsyncConnection, keys: Sequence[str]) -> list[str]:
    """Set the access time of `keys` to now; gives back those that others had locked, to be tried again."""
    return list((await connection.execute(TOUCH, {"asked_file_key": sorted(set(keys))})).scalars())
