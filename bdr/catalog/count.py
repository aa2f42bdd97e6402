"""Counting: register, release and touch, each one UPDATE that its row count decides.

All lock the rows they are about in key order first. Against a reaper's claim: whoever has the reference's lock first
wins. The claim skips a locked row; a count that waited for a claim finds no row, which is the typed error.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, FromClause, Text, Update, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.base import asked_for, asked_keys
from bdr.catalog.reference import Reference

# `now()` is the start of the transaction, which in a caller's transaction may be long ago.
ACCESSED = func.greatest(Reference.last_access_at, func.clock_timestamp())


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of one key: `before` is None when there is no reference, `after` when nothing was changed."""

    before: int | None
    after: int | None
    zero_ref_retention: timedelta | None


def locked_references(asked: FromClause, *, skip_locked: bool = False) -> Any:
    """A CTE that locks the references asked for, in key order, and reads their counts as they are then."""
    return (
        select(Reference.file_key, Reference.ref_count, Reference.holder_count)
        .join_from(Reference, asked, Reference.file_key == asked.c.file_key)
        .order_by(Reference.file_key)
        .with_for_update(of=Reference, skip_locked=skip_locked)
        .cte("locked")
    )


def _counting(asked: FromClause, change: Update, locked: Any) -> Any:
    changed = change.returning(Reference.file_key, Reference.ref_count, Reference.zero_ref_retention).cte("changed")
    return select(
        asked.c.file_key,
        locked.c.ref_count.label("before"),
        changed.c.ref_count.label("after"),
        changed.c.zero_ref_retention,
    ).select_from(
        asked.outerjoin(locked, locked.c.file_key == asked.c.file_key).outerjoin(
            changed, changed.c.file_key == asked.c.file_key
        )
    )


_ASKED = asked_for("asked", file_key=Text(), n=BigInteger())
# Counted from what was found under the lock, not from the row that the update finds: that is as old as the statement,
# so a release that waited for a registration would take the zero from before it for the count.
_HELD = locked_references(_ASKED)
REGISTER = _counting(
    _ASKED,
    update(Reference)
    .where(Reference.file_key == _HELD.c.file_key, Reference.file_key == _ASKED.c.file_key)
    .values(ref_count=_HELD.c.ref_count + _ASKED.c.n, last_access_at=ACCESSED),
    _HELD,
)
RELEASE = _counting(
    _ASKED,
    update(Reference)
    .where(
        Reference.file_key == _HELD.c.file_key,
        Reference.file_key == _ASKED.c.file_key,
        # Who registered by name also releases by name: these are not for others to give away.
        _HELD.c.ref_count - _HELD.c.holder_count >= _ASKED.c.n,
    )
    .values(ref_count=_HELD.c.ref_count - _ASKED.c.n, last_access_at=ACCESSED),
    _HELD,
)

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


async def _count(connection: AsyncConnection, statement: Any, keys: Sequence[str]) -> dict[str, Counted]:
    # Summed first: `UPDATE … FROM` applies a key that comes twice only once.
    asked = Counter(keys)
    ordered = sorted(asked)
    found = await connection.execute(statement, {"asked_file_key": ordered, "asked_n": [asked[key] for key in ordered]})
    return {row.file_key: Counted(row.before, row.after, row.zero_ref_retention) for row in found}


async def register(connection: AsyncConnection, keys: Sequence[str]) -> Mapping[str, Counted]:
    """Add one to each key's count for each time it comes in `keys`; one answer per distinct key."""
    return await _count(connection, REGISTER, keys)


async def release(connection: AsyncConnection, keys: Sequence[str]) -> Mapping[str, Counted]:
    """Take one from each key's count for each time it comes in `keys`, never below zero: then it stays as it was."""
    return await _count(connection, RELEASE, keys)


async def touch(connection: AsyncConnection, keys: Sequence[str]) -> list[str]:
    """Set the access time of `keys` to now; gives back those that others had locked, to be tried again."""
    return list((await connection.execute(TOUCH, {"asked_file_key": sorted(set(keys))})).scalars())
