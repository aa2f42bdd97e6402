"""What a repair does: blobs whose bytes are lost are retired, and objects that nobody owns are moved aside."""

import hashlib
from collections.abc import Generator
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import blob, inventory, reference
from bdr.catalog.blob import DELETING, LIVE, PENDING, QUARANTINED, Reservation
from bdr.fsck import Finding, FindingKind
from bdr.fsck.quarantine import move_orphans
from bdr.fsck.retire import retire_blobs
from bdr.keys import new_id, object_path
from tests.interleaving.ground import DATA
from tests.interleaving.operations import Parts, end, reference_row
from tests.interleaving.serial import Operation, Rule, Turn
from tests.interleaving.stage import STORAGE, Stage
from tests.interleaving.state import BlobRow, Ref


def retire(name: str) -> Operation:
    """A blob that was found without its object is given to the reaper and its references go, if that is still so."""

    def rule(turn: Turn) -> Parts:
        there = name in turn.state.objects
        yield
        row = turn.state.blobs.get(name)
        if there or row is None or row.state != LIVE:
            return "skipped", 0
        yield
        turned, gone = yield from retiring(turn, name, DELETING)
        end(turn.state, gone, "fsck")
        return "repaired" if turned else "skipped", len(gone)

    return _retire(name, FindingKind.MISSING, rule)


def retire_unreferenced(name: str) -> Operation:
    """A live blob that no reference needs is given to the reaper, unless one needs it by now."""

    def rule(turn: Turn) -> Parts:
        row = turn.state.blobs.get(name)
        if row is None or row.state != LIVE or turn.state.refers_to(name):
            return "skipped", 0
        yield
        turned, gone = yield from retiring(turn, name, DELETING)
        end(turn.state, gone, "fsck")
        return "repaired" if turned else "skipped", len(gone)

    return _retire(name, FindingKind.UNREFERENCED, rule)


def _retire(name: str, kind: FindingKind, rule: Rule) -> Operation:
    async def run(stage: Stage) -> object:
        finding = _finding(stage, kind, name)
        (outcome,), references = await retire_blobs(stage.binary.engine, STORAGE, kind, [finding])
        return outcome.result.value, references

    return Operation(f"retire {name}, {kind}", run, rule)


def quarantine(name: str) -> Operation:
    """The transaction alone that retires what is truncated or corrupt: what is left of the bytes is kept."""

    async def run(stage: Stage) -> object:
        async def work(own: AsyncConnection) -> tuple[int, int]:
            deleted, turned = await inventory.retire(own, [stage.blob_ids[name]], quarantined_because="truncated")
            return len(turned), len(deleted)

        return await stage.database.transaction(work)

    def rule(turn: Turn) -> Parts:
        turned, gone = yield from retiring(turn, name, QUARANTINED)
        return int(turned), len(gone)

    return Operation(f"quarantine {name}", run, rule)


def retiring(turn: Turn, name: str, state: str) -> Generator[None, None, tuple[bool, list[str]]]:
    """The references that it found go. One that was made before it had the blob as well keeps the blob live."""
    found = [one for one, ref in turn.state.references.items() if ref.blob == name]
    yield
    gone = [one for one in found if one in turn.state.references]
    for one in gone:
        del turn.state.references[one]
    row = turn.state.blobs.get(name)
    if row is None or row.state != LIVE or turn.state.refers_to(name):
        return False, gone
    row.state, row.due, row.claim = state, state == DELETING, row.claim + 1
    return True, gone


def move(name: str) -> Operation:
    """An object that nobody owns gets an owner, which is always the same one, and then lies where that says."""

    async def run(stage: Stage) -> object:
        finding = _finding(stage, FindingKind.ORPHAN, name)
        (outcome,) = await move_orphans(stage.binary.engine, STORAGE, [finding])
        return outcome.result.value

    def rule(turn: Turn) -> Parts:
        there = name in turn.state.objects
        yield
        if not there or name in turn.state.blobs:
            return "skipped"
        yield
        turn.state.blobs.setdefault("new", BlobRow(QUARANTINED))
        yield
        if name in turn.state.objects:
            turn.state.objects ^= {name, "new"}
        return "repaired" if "new" in turn.state.objects else "skipped"

    return Operation(f"move {name}", run, rule)


def readopt(name: str) -> Operation:
    """An upload whose row was taken away gives what it wrote an owner again, to be deleted."""

    async def run(stage: Stage) -> object:
        blob_id = stage.blob_ids[name]
        mine = Reservation(blob_id, STORAGE, object_path(blob_id), new_id())
        return await stage.database.transaction(lambda own: blob.readopt(own, mine, timedelta(0), "failed"))

    def rule(turn: Turn) -> None:
        turn.state.blobs[name] = BlobRow(DELETING, due=True)

    return Operation(f"readopt {name}", run, rule)


def publish(name: str, uploaded: str) -> Operation:
    """The last transaction of an upload: its blob is live with its reference, or neither."""

    async def run(stage: Stage) -> object:
        row = reference_row(stage, name, uploaded)

        async def work(own: AsyncConnection) -> bool:
            done = await blob.publish(own, stage.blob_ids[uploaded], len(DATA), hashlib.sha256(DATA).digest())
            if done:
                await reference.create(own, row)
            return done

        return await stage.database.transaction(work)

    def rule(turn: Turn) -> object:
        row = turn.state.blobs.get(uploaded)
        if row is None or row.state != PENDING:
            return False
        row.state, row.due = LIVE, False
        turn.state.references[name] = Ref(uploaded, count=1)
        return True

    return Operation(f"publish {name}", run, rule)


def _finding(stage: Stage, kind: FindingKind, name: str) -> Finding:
    blob_id = stage.blob_ids[name]
    owner = None if kind is FindingKind.ORPHAN else blob_id
    return Finding(kind=kind, storage=STORAGE, path=object_path(blob_id), blob_id=owner, size=len(DATA))
