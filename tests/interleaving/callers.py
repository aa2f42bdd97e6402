"""What callers do inside transactions of their own, at any isolation level, which they then commit or roll back."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.blob import LIVE, PENDING
from bdr.catalog.database import translated
from bdr.errors import BinaryStorageError, NotReferenced, TransactionConflict
from tests.interleaving.ground import DATA
from tests.interleaving.holders import held
from tests.interleaving.operations import Parts, abandoning, absent, end
from tests.interleaving.serial import Operation, Rule, Turn, in_parts
from tests.interleaving.stage import Level, Stage
from tests.interleaving.state import BlobRow, Ref

ROLLED_BACK: Final = "rolled back"
# What a caller may have done before: from here on, above READ COMMITTED, it sees the catalog as it was then.
_EARLIER: Final = text("SELECT count(*) FROM bdr.binary_data_reference")


@dataclass(frozen=True)
class Verb:
    """A verb of bdr in a caller's transaction, and what must come of it when that commits."""

    name: str
    run: Callable[[Stage, AsyncConnection], Awaitable[object]]
    rule: Rule


def register(name: str) -> Verb:
    """Counts when the transaction commits."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        ref.count, ref.idle = ref.count + 1, False
        return ref.count

    return Verb("register", lambda stage, own: stage.binary.register_reference(stage.keys[name], connection=own), rule)


def release(name: str) -> Verb:
    """Counts when the transaction commits; what would be cleaned up at once is left to the reaper."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        if ref.count == len(ref.holders):
            return NotReferenced
        ref.count, ref.idle = ref.count - 1, False
        return ref.count

    return Verb("release", lambda stage, own: stage.binary.release_reference(stage.keys[name], connection=own), rule)


def hold(name: str, holder: str) -> Verb:
    """The holder counts once when the transaction commits, and its lease is new."""

    def rule(turn: Turn) -> Parts:
        if name not in turn.state.references:
            return (yield from absent(turn, name))
        return held(turn.state.references[name], holder)

    async def run(stage: Stage, own: AsyncConnection) -> object:
        return await stage.binary.register_reference(stage.keys[name], holder=holder, connection=own)

    return Verb("hold", run, rule)


def cleanup(name: str) -> Verb:
    """What nothing holds expires at once, for the reaper; a registration saves it until then."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        if ref.count > 0:
            return False
        ref.at_once = True
        end(turn.state, [name], "cleanup")
        return True

    return Verb("cleanup", lambda stage, own: stage.binary.cleanup_data(stage.keys[name], connection=own), rule)


def delete(name: str) -> Verb:
    """It expires at once, whatever its count, and nothing saves it."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        ref.count, ref.at_once, ref.aged, ref.holders = 0, True, True, {}
        end(turn.state, [name], "delete")
        return None

    return Verb("delete", lambda stage, own: stage.binary.delete_data(stage.keys[name], connection=own), rule)


async def _store(stage: Stage, own: AsyncConnection) -> object:
    return stage.names([(await stage.binary.store_data(DATA, connection=own)).file_key])


def within(level: Level, verb: Verb, *, commits: bool = True) -> Operation:
    """The verb in one go when the caller commits, nothing at all when it rolls back.

    Above READ COMMITTED it may also lose against whoever was there at the same time, and says so: TransactionConflict.
    """

    def rule(turn: Turn) -> Parts:
        if level != "READ COMMITTED" and turn.skips():
            return TransactionConflict
        if not commits:
            return ROLLED_BACK
        return (yield from in_parts(verb.rule, turn))

    return Operation(f"{verb.name} in a transaction", _runner(level, verb.run, commits, looks_first=True), rule)


def store_within(level: Level, *, commits: bool = True, looks_first: bool = False) -> Operation:
    """Reserved on bdr's own connection and published when the caller commits; otherwise the row is left to the reaper.

    A transaction that cannot see the reservation, or whose row a reaper was quicker to claim, is told so at once.
    """

    def rule(turn: Turn) -> Parts:
        blobs, hasty = turn.state.blobs, turn.state.hasty
        blobs["new"] = BlobRow(PENDING, due=hasty)
        yield
        row = blobs.get("new")
        if row is None or row.state != PENDING or (looks_first and level != "READ COMMITTED"):
            yield
            abandoning(turn.state, due=True)
            return TransactionConflict
        # The caller's transaction has the row locked now: to everybody else it is as if it were not due.
        row.due = False
        yield
        turn.state.objects.add("new")
        yield
        if not commits:
            row.due = hasty
            return ROLLED_BACK
        row.state = LIVE
        turn.state.references["new"] = Ref("new", count=1)
        turn.state.records["store succeeded"] += 1
        return ["new"]

    return Operation("store in a transaction", _runner(level, _store, commits, looks_first=looks_first), rule)


def _runner(
    level: Level, run: Callable[[Stage, AsyncConnection], Awaitable[object]], commits: bool, *, looks_first: bool
) -> Callable[[Stage], Awaitable[object]]:
    async def work(stage: Stage) -> object:
        async with stage.callers[level].connect() as connection:
            if looks_first:
                await connection.execute(_EARLIER)
            try:
                result = await run(stage, connection)
            except TransactionConflict:
                raise
            except BinaryStorageError as error:
                # Nothing was changed, and the transaction goes on.
                result = type(error)
            if not commits:
                await connection.rollback()
                return ROLLED_BACK
            with translated():
                await connection.commit()
            return result

    return work
