"""Orphans: moved aside, with an owner from before the move, and deleted by nobody but a person."""

import uuid
from collections.abc import Collection

from bdr.catalog import inventory
from bdr.catalog.blob import QUARANTINED
from bdr.errors import BinaryStorageError, FileNotFound
from bdr.fsck.findings import Finding
from bdr.fsck.outcome import Outcome, Result, all_ended
from bdr.fsck.probe import Probe, is_plain, side_by_side
from bdr.keys import encode
from bdr.manager.engine import Engine

QUARANTINE = ".bdr-quarantine"


async def move_orphans(engine: Engine, storage: str, findings: Collection[Finding]) -> list[Outcome]:
    """Give orphans a quarantined blob each, and move them to its path; UnknowableError when the storage is away.

    The row comes first. Killed after it: a row without an object, which harms nobody, and an orphan as before. Killed
    after the move: the row has its object. Were the move first, the object would have no owner again, in another place.
    The blob's id is made from the orphan's path, which is never used again. So whoever repairs this orphan, now or at
    another time, two at once or after a crash, means the same row and the same path, and finishes what was begun.
    """
    probe = Probe(engine, storage)
    await probe.verify()
    named = {one.path: one for one in findings if one.path is not None and is_plain(one.path)}
    unnamed = [one for one in findings if one.path not in named]
    outcomes = all_ended(unnamed, Result.SKIPPED, "bdr cannot name it, so it cannot move it; look at it by hand")
    sizes = await probe.sizes(named)
    # After the stat: an upload whose row had been taken away may have inserted it again. Should it do so only after
    # this, its row waits for a delete that finds nothing, and the bytes, which nobody can reach, are in quarantine.
    owned = await _states(engine, storage, named)
    marked: dict[str, bool] = {}
    moved: dict[str, Finding] = {}
    for path, one in named.items():
        why_not = await _reason_to_stay(probe, path, sizes[path], owned.get(path), marked)
        if why_not is None:
            moved[path] = one
        else:
            outcomes.append(Outcome(one, Result.SKIPPED, why_not))
    return outcomes + await _moved(engine, storage, moved, sizes)


async def _reason_to_stay(
    probe: Probe, path: str, size: int | None, state: str | None, marked: dict[str, bool]
) -> str | None:
    if size is None:
        return "it is not there any more"
    if state is not None:
        return f"it has a blob by now, which is {state}"
    above = await probe.marked_above(path, marked)
    return None if above is None else f"{above}/ holds the marker of a storage, to which it belongs"


async def _moved(
    engine: Engine, storage: str, moved: dict[str, Finding], sizes: dict[str, int | None]
) -> list[Outcome]:
    ids = {path: uuid.uuid5(engine.catalog_id, f"{storage}:{path}") for path in moved}
    targets = {path: f"{QUARANTINE}/{encode(blob_id)}" for path, blob_id in ids.items()}
    rows = [
        {
            "blob_id": ids[path],
            "storage_name": storage,
            "object_path": targets[path],
            "size": sizes[path],
            "instance_id": engine.instance_id,
            "last_error": f"fsck found it without an owner, at {path}",
        }
        for path in sorted(moved, key=ids.__getitem__)
    ]
    if rows:
        await engine.database.transaction(lambda own: inventory.adopt(own, rows))
        # fail point: repair.adopted
    states = await _states(engine, storage, targets.values())

    async def move(path: str) -> Outcome:
        one, target = moved[path], targets[path]
        if states.get(target) != QUARANTINED:
            # A person has decided about an earlier copy of it, and a reaper may be about to delete what is there.
            return Outcome(one, Result.SKIPPED, f"its place in quarantine, {target}, is being deleted")
        try:
            await engine.storage(storage).move(path, target)
        except FileNotFound:
            return Outcome(one, Result.SKIPPED, "it is not there any more")
        except BinaryStorageError as error:
            return Outcome(one, Result.FAILED, str(error))
        # fail point: repair.moved
        return Outcome(one, Result.REPAIRED, f"moved to {target}")

    return list((await side_by_side(moved, move, engine.settings.fsck.concurrency)).values())


async def _states(engine: Engine, storage: str, paths: Collection[str]) -> dict[str, str]:
    if not paths:
        return {}
    async with engine.database.reading() as connection:
        owners = await inventory.owners(connection, storage, list(paths))
    return {path: owner.state for path, owner in owners.items()}
