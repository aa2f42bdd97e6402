"""What callers do with references: what is really run, and the rule that says in words and code what must come of it.

To add an operation: a function that gives back an `Operation`, with what to await and its rule. Its steps are found by
themselves. The reaper's side is in `reaping`, callers' own transactions in `callers`, records in `records`.
"""

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import count, reference
from bdr.catalog.blob import DELETING, LIVE, PENDING
from bdr.errors import FileNotFound, Gone, Lost, NotReferenced, OperationError, Pinned
from bdr.manager.deletion import Terms, delete_references
from tests.interleaving.ground import DATA
from tests.interleaving.serial import Operation, Turn
from tests.interleaving.stage import Stage
from tests.interleaving.state import BlobRow, Ref, State

Parts = Generator[None, None, object]

HOUR: Final = timedelta(hours=1)


def absent(turn: Turn, name: str) -> Parts:
    """The catalog is asked again for a record of the end: gone, or not known at all."""
    yield
    return Gone if name in turn.state.ended else FileNotFound


def register(name: str) -> Operation:
    """Adds one and says how many there are now; where the reference is gone, it says that. It saves what is idle."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        ref.count, ref.idle = ref.count + 1, False
        return ref.count

    return Operation(f"register {name}", lambda stage: stage.binary.register_reference(stage.keys[name]), rule)


def release(name: str) -> Operation:
    """Takes one, never below zero, nor one that is held by name. At zero with no life left, a cleanup follows."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        if ref.count == len(ref.holders):
            return NotReferenced
        return (yield from let_go(turn, name))

    return Operation(f"release {name}", lambda stage: stage.binary.release_reference(stage.keys[name]), rule)


def let_go(turn: Turn, name: str) -> Parts:
    """One less; a reference that has no life left then is cleaned up, unless somebody registers it before."""
    ref = turn.state.references[name]
    ref.count, ref.idle = ref.count - 1, False
    left = ref.count
    if left == 0 and ref.at_once:
        yield
        yield from removal(turn, [name], "cleanup")
    return left


def get(name: str) -> Operation:
    """Gives the bytes, or says that the reference has gone or was never known; it is never lost."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        yield
        if ref.blob in turn.state.objects:
            return DATA
        yield
        return Lost if name in turn.state.references else Gone

    return Operation(f"get {name}", lambda stage: stage.binary.get_data(stage.keys[name]), rule, waits=False)


def touch(name: str) -> Operation:
    """Makes the reference fresh, or passes over it while others have it and gives it back to be tried again."""

    async def run(stage: Stage) -> object:
        key = stage.keys[name]
        return stage.names(await stage.database.write(lambda own: count.touch(own, [key])))

    def rule(turn: Turn) -> object:
        if (ref := turn.state.references.get(name)) is None:
            return []
        if turn.skips():
            return [name]
        ref.idle = False
        return []

    return Operation(f"touch {name}", run, rule, waits=False)


def removal(turn: Turn, names: Sequence[str], kind: str) -> Generator[None, None, list[str]]:
    """The references go that may; then the objects of blobs that they were the last of; then the blobs' rows."""
    state = turn.state
    there = [name for name in names if name in state.references]
    doomed = [name for name in there if kind == "delete" or state.references[name].count == 0]
    doomed = [name for name in doomed if not state.references[name].pinned]
    claimed = drop(state, doomed, due=state.hasty)
    end(state, doomed, kind)
    yield from sweeping(state, claimed)
    return doomed


def end(state: State, names: Sequence[str], kind: str) -> None:
    """A record tells of each one's end."""
    state.records[f"{kind} succeeded"] += len(names)
    state.ended.update(names)


def delete(name: str) -> Operation:
    """Removes the reference whatever its count; pinned, it stays and says so."""

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        pinned = ref.pinned
        yield from removal(turn, [name], "delete")
        return Pinned if pinned else None

    return Operation(f"delete {name}", lambda stage: stage.binary.delete_data(stage.keys[name]), rule)


def cleanup(name: str) -> Operation:
    """Removes the reference if nothing holds it, whatever life it has left; otherwise nothing changes."""

    def rule(turn: Turn) -> Parts:
        if name not in turn.state.references:
            return (yield from absent(turn, name))
        return bool((yield from removal(turn, [name], "cleanup")))

    return Operation(f"cleanup {name}", lambda stage: stage.binary.cleanup_data(stage.keys[name]), rule)


def pin(name: str, *, pinned: bool = True) -> Operation:
    """Pinned, the reference does not expire; unpinned, its count and age decide again."""

    async def run(stage: Stage) -> None:
        await (stage.binary.pin if pinned else stage.binary.unpin)(stage.keys[name])

    def rule(turn: Turn) -> Parts:
        if (ref := turn.state.references.get(name)) is None:
            return (yield from absent(turn, name))
        ref.pinned = pinned
        return None

    return Operation(f"{'pin' if pinned else 'unpin'} {name}", run, rule)


def remove(name: str) -> Operation:
    """The first transaction of a delete alone: the reference goes, and its blob is claimed if it was the last."""

    async def run(stage: Stage) -> object:
        async def work(own: AsyncConnection) -> int:
            locked = await reference.lock(own, [stage.keys[name]])
            return len(await reference.remove(own, list(locked.values()), HOUR)) if locked else 0

        return await stage.database.transaction(work)

    def rule(turn: Turn) -> object:
        return len(drop(turn.state, [name], due=False)) if name in turn.state.references else 0

    return Operation(f"remove {name}", run, rule)


def reference_row(stage: Stage, name: str, shared: str) -> dict[str, object]:
    """What a session inserts to refer to a blob."""
    described = {"mime_kind": "text/plain", "file_size": len(DATA), "max_retention": 24 * 7 * HOUR}
    return described | {
        "file_key": stage.new_key(name),
        "blob_id": stage.blob_ids[shared],
        "zero_ref_retention": HOUR,
    }


def add(name: str, shared: str) -> Operation:
    """Another reference to a blob that is live; once the blob's end has begun, the foreign key refuses it."""

    async def run(stage: Stage) -> object:
        row = reference_row(stage, name, shared)
        return await stage.database.transaction(lambda own: reference.create(own, row))

    def rule(turn: Turn) -> object:
        row = turn.state.blobs.get(shared)
        if row is None or row.state != LIVE:
            return OperationError
        turn.state.references[name] = Ref(shared, count=1)
        return None

    return Operation(f"add {name}", run, rule)


def delete_many(*names: str) -> Operation:
    """Removes all of them in one transaction, and says of each whether it was there."""

    async def run(stage: Stage) -> object:
        keys = [stage.keys[name] for name in names]
        engine = stage.binary.engine
        verdicts = await delete_references(engine, keys, Terms("delete", whatever_the_count=True))
        return [verdicts[key].value for key in keys]

    def rule(turn: Turn) -> Parts:
        there = [name for name in names if name in turn.state.references]
        yield from removal(turn, names, "delete")
        return ["deleted" if name in there else "missing" for name in names]

    return Operation(f"delete {'+'.join(names)}", run, rule)


def count_many(change: int, *names: str) -> Operation:
    """Adds one to each, or takes one: one statement, each key by itself; what is not there changes nothing else."""

    async def run(stage: Stage) -> object:
        take = count.register if change > 0 else count.release
        keys = [stage.keys[name] for name in names]
        counted = await stage.database.write(lambda own: take(own, keys))
        return [counted[key].after for key in keys]

    def rule(turn: Turn) -> object:
        after: list[int | None] = []
        for name in names:
            ref = turn.state.references.get(name)
            if ref is None or ref.count + change < len(ref.holders):
                after.append(None)
            else:
                ref.count, ref.idle = ref.count + change, False
                after.append(ref.count)
        return after

    return Operation(f"{'register' if change > 0 else 'release'} {'+'.join(names)}", run, rule)


def drop(state: State, names: Sequence[str], *, due: bool) -> dict[str, int]:
    """The references go; blobs that nothing refers to any more are claimed, and given back with their claims."""
    blobs = {state.references.pop(name).blob for name in names}
    claimed = {}
    for name in sorted(blobs):
        if not state.refers_to(name):
            row = state.blobs[name]
            row.state, row.due, row.claim = DELETING, due, row.claim + 1
            claimed[name] = row.claim
    return claimed


def sweeping(state: State, claimed: Mapping[str, int]) -> Generator[None, None, int]:
    """The objects first; then each row, unless somebody has given it another deadline meanwhile. How many rows went."""
    for name in claimed:
        yield
        state.objects.discard(name)
    if claimed:
        yield
    mine = [name for name, number in claimed.items() if is_claimed(state, name, number)]
    for name in mine:
        del state.blobs[name]
    return len(mine)


def is_claimed(state: State, name: str, number: int) -> bool:
    """Whether the row is still that claim's."""
    row = state.blobs.get(name)
    return row is not None and row.state == DELETING and row.claim == number


def store() -> Operation:
    """Published, and there; or a reaper was quicker, nothing can be read, and what was written has an owner."""

    async def run(stage: Stage) -> object:
        return stage.names([(await stage.binary.store_data(DATA)).file_key])

    def rule(turn: Turn) -> Parts:
        state = turn.state
        state.blobs["new"] = BlobRow(PENDING, due=state.hasty)
        yield
        state.objects.add("new")
        yield
        if (row := state.blobs.get("new")) is None or row.state != PENDING:
            yield
            abandoning(state, due=state.hasty)
            return OperationError
        row.state, row.due = LIVE, False
        state.references["new"] = Ref("new", count=1)
        state.records["store succeeded"] += 1
        return ["new"]

    return Operation("store", run, rule)


def store_that_fails() -> Operation:
    """The caller's own error comes back; nothing can be read, and what may have been written has an owner."""

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1 << 16)
        raise ZeroDivisionError

    def rule(turn: Turn) -> Parts:
        turn.state.blobs["new"] = BlobRow(PENDING, due=turn.state.hasty)
        yield
        abandoning(turn.state, due=turn.state.hasty)
        return "ZeroDivisionError: "

    return Operation("store that fails", lambda stage: stage.binary.store_stream(broken()), rule)


def abandoning(state: State, *, due: bool) -> None:
    """The upload's row is given to the reaper, whoever had it before, or made again when it was gone."""
    claim = state.blobs["new"].claim + 1 if "new" in state.blobs else 0
    state.blobs["new"] = BlobRow(DELETING, due=due, claim=claim)
    state.records["store failed"] += 1
