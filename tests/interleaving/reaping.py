"""What reapers do: the claims, the sweep of what was claimed, and what becomes of deletes that fail."""

from collections.abc import Mapping
from typing import Final

from bdr.catalog import blob, expiry
from bdr.catalog.blob import DELETING, PENDING, QUARANTINED, FailedDelete, Reservation
from bdr.errors import OperationError
from bdr.keys import new_id
from bdr.manager.deletion import forget_memory
from bdr.manager.sweep import sweep_objects
from bdr.reaper.reap import reap as reap_once
from tests.interleaving.operations import HOUR, Parts, drop, end, is_claimed, sweeping
from tests.interleaving.serial import Operation, Turn
from tests.interleaving.stage import STORAGE, Stage
from tests.interleaving.state import BlobRow, State

BATCH: Final = 10


def claim() -> Operation:
    """The reaper deletes what has expired, all of it but what others have; orphaned blobs are due at once."""

    async def run(stage: Stage) -> object:
        expired = await stage.database.transaction(lambda own: expiry.claim_expired(own, STORAGE, BATCH))
        return stage.names([one.file_key for one in expired.references])

    return Operation("claim", run, claiming, waits=False)


def claiming(turn: Turn) -> list[str]:
    names = sorted(name for name, ref in turn.state.references.items() if ref.is_expired and not turn.skips())
    drop(turn.state, names, due=True)
    return names


def claim_stranded() -> Operation:
    """The reaper takes uploads past their deadline, but for one that is just being published."""

    async def run(stage: Stage) -> object:
        grace = stage.binary.engine.settings.reaper.write_grace
        return await stage.database.write(lambda own: blob.claim_stranded(own, STORAGE, grace, BATCH))

    return Operation("claim stranded", run, stranding, waits=False)


def stranding(turn: Turn) -> int:
    stranded = [row for row in turn.state.blobs.values() if row.state == PENDING and row.due and not turn.skips()]
    for row in stranded:
        row.state, row.due, row.claim = DELETING, turn.state.hasty, row.claim + 1
    return len(stranded)


def sweep() -> Operation:
    """The reaper claims what is due, deletes the objects, then the rows that are still its own."""

    async def run(stage: Stage) -> object:
        engine = stage.binary.engine
        lease = engine.settings.reaper.lease
        claimed = await stage.database.write(lambda own: blob.claim_due(own, STORAGE, lease, BATCH))
        if claimed:
            await sweep_objects(engine, STORAGE, claimed)
        return len(claimed)

    def rule(turn: Turn) -> Parts:
        claimed = claiming_due(turn)
        yield from sweeping(turn.state, claimed)
        return len(claimed)

    return Operation("sweep", run, rule)


def claiming_due(turn: Turn) -> dict[str, int]:
    due = {
        name: row for name, row in turn.state.blobs.items() if row.state == DELETING and row.due and not turn.skips()
    }
    for row in due.values():
        row.due, row.claim = turn.state.hasty, row.claim + 1
    return {name: row.claim for name, row in due.items()}


def fail(*, last: bool = False) -> Operation:
    """The reaper claims what is due and cannot delete it: it waits for its back-off, or is quarantined at last."""

    async def run(stage: Stage) -> object:
        if not (failed := await _claimed(stage)):
            return 0
        return await stage.database.write(
            lambda own: blob.postpone(own, failed, backoff=HOUR, backoff_max=HOUR, max_attempts=1 if last else 1000)
        )

    def rule(turn: Turn) -> Parts:
        claimed = claiming_due(turn)
        yield
        rows = put_back(turn.state, claimed)
        for row in rows if last else ():
            row.state = QUARANTINED
        return len(rows) if last else 0

    return Operation("fail at last" if last else "fail", run, rule)


def hand_back() -> Operation:
    """The reaper claims what is due and cannot reach the storage: it waits, and no attempt is used up."""

    async def run(stage: Stage) -> object:
        if failed := await _claimed(stage):
            await stage.database.write(lambda own: blob.hand_back(own, failed, HOUR))
        return len(failed)

    def rule(turn: Turn) -> Parts:
        claimed = claiming_due(turn)
        yield
        put_back(turn.state, claimed)
        return len(claimed)

    return Operation("hand back", run, rule)


async def _claimed(stage: Stage) -> list[FailedDelete]:
    lease = stage.binary.engine.settings.reaper.lease
    claimed = await stage.database.write(lambda own: blob.claim_due(own, STORAGE, lease, BATCH))
    return [FailedDelete(one, "no") for one in claimed]


def put_back(state: State, claimed: Mapping[str, int]) -> list[BlobRow]:
    """They wait for an hour; what somebody else has claimed meanwhile is theirs, and stays as it is."""
    rows = [state.blobs[name] for name, number in claimed.items() if is_claimed(state, name, number)]
    for row in rows:
        row.claim, row.due = row.claim + 1, False
    return rows


def renew() -> Operation:
    """An upload gets another lease, unless a reaper has claimed it."""

    async def run(stage: Stage) -> object:
        ids = list(stage.blob_ids.values())
        return len(await stage.database.write(lambda own: blob.renew(own, ids, HOUR)))

    def rule(turn: Turn) -> object:
        pending = [row for row in turn.state.blobs.values() if row.state == PENDING]
        for row in pending:
            row.due = False
        return len(pending)

    return Operation("renew", run, rule)


def reap() -> Operation:
    """A whole pass: everything above in turn, and records of what was deleted by which rule."""

    async def run(stage: Stage) -> object:
        report = await reap_once(stage.binary.engine, stage.binary.operations)
        return report.references, report.stranded, report.blobs

    def rule(turn: Turn) -> Parts:
        expired = claiming(turn)
        end(turn.state, expired, "reap")
        yield
        stranded = stranding(turn)
        yield
        claimed = claiming_due(turn)
        swept = yield from sweeping(turn.state, claimed)
        yield
        if expired or stranded or swept:
            turn.state.records["reap_pass succeeded"] += 1
        return len(expired), stranded, swept

    return Operation("reap", run, rule)


def reserve() -> Operation:
    """An upload's row, unless the storage itself was forgotten meanwhile."""

    async def run(stage: Stage) -> object:
        mine = Reservation(new_id(), STORAGE, "path", new_id())
        return await stage.database.write(lambda own: blob.reserve(own, [mine], HOUR))

    def rule(turn: Turn) -> object:
        if not turn.state.known:
            return OperationError
        turn.state.blobs["new"] = BlobRow(PENDING)
        return None

    return Operation("reserve", run, rule)


def forget() -> Operation:
    """What was in the memory of a dead engine goes, and its storage with the last of it; what others have is left."""

    async def run(stage: Stage) -> object:
        own = stage.binary.engine.instance_id
        return await forget_memory(stage.database, STORAGE, batch=BATCH, instance_id=own)

    def rule(turn: Turn) -> Parts:
        forgotten = 0
        while batch := forgetting(turn):
            forgotten += batch[0]
            yield
        return forgotten

    return Operation("forget", run, rule)


def forgetting(turn: Turn) -> tuple[int, int] | None:
    """One transaction of it: how many references went and how many blobs; None when there was nothing to be had."""
    state = turn.state
    names = [name for name in state.references if not turn.skips()]
    for name in names:
        del state.references[name]
    end(state, names, "reap")
    blobs = [name for name in state.blobs if not state.refers_to(name) and not turn.skips()]
    for name in blobs:
        del state.blobs[name]
    if not state.blobs and not turn.skips():
        state.known = False
    return (len(names), len(blobs)) if names or blobs else None
