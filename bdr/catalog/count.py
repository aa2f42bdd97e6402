"""Counting: register, release and touch, each one UPDATE that its row count decides.

All that are about several rows lock them in key order first. Against a reaper's claim: whoever has the reference's lock
first wins. The claim skips a locked row; a count that waited for a claim finds no row, which is the typed error.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Boolean, ColumnElement, FromClause, Text, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.base import asked_for, in_order
from bdr.catalog.database import Database
from bdr.catalog.prepared import Prepared
from bdr.catalog.reference import Reference

# `now()` is the start of the transaction, which in a caller's transaction may be long ago.
ACCESSED = func.greatest(Reference.last_access_at, func.clock_timestamp())


class Counted(NamedTuple):
    """What became of one key: `before` is None when there is no reference, `after` when nothing was changed."""

    before: int | None
    after: int | None
    zero_ref_retention: timedelta | None

    @property
    def has_ended(self) -> bool:
        """Whether it goes at once: no use is left, and no retention."""
        return self.after == 0 and self.zero_ref_retention == timedelta(0)


class Tally(NamedTuple):
    """What a change found and did.

    Attributes:
        before: the count that was found.
        free: how much of that releases without a name may take; known when nothing was changed.
        after: the new count; None when nothing was changed.
    """

    before: int
    free: int | None
    after: int | None
    zero_ref_retention: timedelta | None


class Change(NamedTuple):
    """What some registrations and releases together do to one reference, in the order in which they came.

    Attributes:
        net: their sum.
        low: the lowest that the sum was on the way, zero at most: what they take that must be there before.
    """

    net: int
    low: int


def locked_references(asked: FromClause, *conditions: ColumnElement[bool], skip_locked: bool = False) -> Any:
    """A CTE that locks the references asked for, in key order, and reads their counts as they are then.

    What is asked of each comes along: the other columns of `asked`.
    """
    more = [column for column in asked.c if column.name != "file_key"]
    return (
        select(Reference.file_key, Reference.ref_count, Reference.holder_count, *more)
        .join_from(Reference, asked, Reference.file_key == asked.c.file_key)
        .where(*conditions)
        .order_by(Reference.file_key)
        .with_for_update(of=Reference, skip_locked=skip_locked)
        .cte("locked")
    )


_ASKED = asked_for("asked", file_key=Text(), net=BigInteger(), low=BigInteger())
_COUNTED = (Reference.file_key, Reference.ref_count.label("after"), Reference.zero_ref_retention)


def _free(locked: Any) -> Any:
    # Who registered by name also releases by name: these are not for others to give away.
    return locked.c.ref_count - locked.c.holder_count


def _wholly(locked: Any) -> tuple[Any, Any]:
    """All that is asked of a reference, or nothing."""
    return _free(locked) + locked.c.low >= 0, locked.c.net


def _as_far_as_it_goes(locked: Any) -> tuple[Any, Any]:
    """Of the releases asked of a reference, as many as there are uses."""
    return _free(locked) > 0, func.greatest(locked.c.net, -_free(locked))


def _changing(locked: Any, allowed: Callable[[Any], tuple[Any, Any]]) -> Any:
    may, by = allowed(locked)
    # Counted from what was found under the lock, not from the row that the update finds: that is as old as the
    # statement, so a release that waited for a registration would take the zero from before it for the count.
    return (
        update(Reference)
        .where(Reference.file_key == locked.c.file_key, may)
        .values(
            ref_count=locked.c.ref_count + by,
            # As it is. Constraints are checked on what would become of the row as the statement's snapshot has it,
            # before the server looks for a newer one: with the old number of holders beside the new count they fail.
            holder_count=locked.c.holder_count,
            last_access_at=ACCESSED,
        )
        .returning(*_COUNTED)
    )


def _counting(allowed: Callable[[Any], tuple[Any, Any]], *, skip_locked: bool = False) -> Any:
    """The change, and what was found where nothing could be changed."""
    locked = locked_references(_ASKED, skip_locked=skip_locked)
    changed = _changing(locked, allowed).cte("changed")
    return select(
        locked.c.file_key,
        locked.c.ref_count.label("before"),
        _free(locked).label("free"),
        changed.c.after,
        changed.c.zero_ref_retention,
    ).select_from(locked.outerjoin(changed, changed.c.file_key == locked.c.file_key))


COUNT = _counting(_wholly)
REGISTER_FREE = _counting(_wholly, skip_locked=True)
RELEASE = _counting(_as_far_as_it_goes)
RELEASE_FREE = _counting(_as_far_as_it_goes, skip_locked=True)
_COUNT = Prepared(COUNT)
COUNT_FREE = Prepared(_changing(locked_references(_ASKED, skip_locked=True), _wholly))
# Without a lock before: a row that changed while this waited for it is looked at again as it then is, all of it. The
# constraints, checked on the row as it was, hold whenever the condition does: `net` is never less than `low`.
COUNT_ONE = Prepared(
    update(Reference)
    .where(
        Reference.file_key == bindparam("key", type_=Text()),
        Reference.ref_count - Reference.holder_count + bindparam("low", type_=BigInteger()) >= 0,
    )
    .values(ref_count=Reference.ref_count + bindparam("net", type_=BigInteger()), last_access_at=ACCESSED)
    .returning(*_COUNTED)
)
PRESENT = Prepared(select(Reference.file_key).where(Reference.file_key == func.any(bindparam("keys", ARRAY(Text())))))

_READ = asked_for("asked", file_key=Text(), if_unheld=Boolean())
_DUE = ~_READ.c.if_unheld | (Reference.ref_count == 0)
# A reader never waits for a row that somebody else counts on: what is skipped here is tried again later.
_FREE = locked_references(_READ, _DUE, skip_locked=True)
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
    .where(_TOUCHED.c.file_key.is_(None), _DUE)
)


async def count_free(database: Database, changes: Callable[[], Mapping[str, Change]]) -> dict[str, Tally]:
    """Apply those changes that need to wait for nobody, in one statement that commits by itself.

    What is not in the answer is not there, locked by somebody else, or has too little. `changes` is called once there
    is a connection, and when it gives none nothing is sent.
    """
    asked: dict[str, Change] = {}

    def values() -> dict[str, Any] | None:
        asked.update(changes())
        return parameters(asked) if asked else None

    found = await database.fetch(COUNT_FREE, values)
    return {row["file_key"]: _tally(row, asked[row["file_key"]]) for row in found}


async def count_one(database: Database, key: str, change: Callable[[], Change | None]) -> Tally | None:
    """Apply one change, which waits for the reference's lock; commits by itself. None when there was nothing to change.

    `change` is called once there is a connection, and when it gives None nothing is sent.
    """
    asked: list[Change] = []

    def values() -> dict[str, Any] | None:
        if (wanted := change()) is None:
            return None
        asked.append(wanted)
        return {"key": key, "net": wanted.net, "low": wanted.low}

    found = await database.fetch(COUNT_ONE, values)
    return _tally(found[0], asked[-1]) if found else None


async def count_under_lock(database: Database, key: str, change: Callable[[], Change | None]) -> Tally | None:
    """As `count_one`, slower, and it tells what is there when that is too little; None when it is not there."""

    def values() -> dict[str, Any] | None:
        wanted = change()
        return None if wanted is None else parameters({key: wanted})

    found = await database.fetch(_COUNT, values)
    return Tally(*(found[0][name] for name in Tally._fields)) if found else None


async def present(database: Database, keys: Sequence[str]) -> set[str]:
    """Which of the keys have a reference."""
    return {row["file_key"] for row in await database.look_up(PRESENT, {"keys": in_order(keys)})}


def _tally(row: Mapping[str, Any], change: Change) -> Tally:
    after = row["after"]
    return Tally(after - change.net, None, after, row["zero_ref_retention"])


async def register(
    connection: AsyncConnection, keys: Sequence[str], *, skip_locked: bool = False
) -> Mapping[str, Counted]:
    """Add one to each key's count for each time it comes in `keys`; one answer per distinct key.

    With `skip_locked` it waits for nobody, and what somebody else has locked looks as if it were not there.
    """
    changes = {key: Change(number, 0) for key, number in Counter(keys).items()}
    return await _count(connection, REGISTER_FREE if skip_locked else COUNT, changes)


async def release(
    connection: AsyncConnection, keys: Sequence[str], *, skip_locked: bool = False
) -> Mapping[str, Counted]:
    """Take one from each key's count for each time it comes in `keys`, as far as there are uses; as `register`."""
    changes = {key: Change(-number, -number) for key, number in Counter(keys).items()}
    return await _count(connection, RELEASE_FREE if skip_locked else RELEASE, changes)


async def _count(connection: AsyncConnection, statement: Any, changes: Mapping[str, Change]) -> dict[str, Counted]:
    found = await connection.execute(statement, parameters(changes))
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


async def touch(connection: AsyncConnection, keys: Collection[str], if_unheld: Collection[str] = ()) -> list[str]:
    """Set the access time of `keys` to now, and of `if_unheld` where the count is zero.

    Gives back those that others had locked, to be tried again.
    """
    asked = dict.fromkeys(if_unheld, True) | dict.fromkeys(keys, False)
    ordered = sorted(asked)
    values = {"asked_file_key": ordered, "asked_if_unheld": [asked[key] for key in ordered]}
    return list((await connection.execute(TOUCH, values)).scalars())
