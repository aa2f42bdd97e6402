"""Blobs whose bytes are lost, or that nobody needs: their references go, and they are live no more."""

import json
import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog import inventory, operation
from bdr.catalog.base import AnyRow
from bdr.catalog.inventory import Owner
from bdr.errors import Busy
from bdr.fsck.findings import Finding, FindingKind
from bdr.fsck.outcome import Outcome, Result, all_ended
from bdr.fsck.part import verdicts
from bdr.fsck.probe import Probe
from bdr.manager.engine import Engine

# What is left of their bytes is kept for a person; the others are deleted like every blob that nobody refers to.
_KEPT = {FindingKind.TRUNCATED, FindingKind.CORRUPT}


async def retire_blobs(
    engine: Engine, storage: str, kind: FindingKind, findings: Sequence[Finding]
) -> tuple[list[Outcome], int]:
    """Retire blobs that are still as the plan says; gives back what became of each, and how many references went.

    The storage is asked first and the locks are taken afterwards, so that no transaction is open meanwhile. What was
    found then still holds: a path is written once, so an object that was not there, or not whole, never will be; and
    that the row was live after that is seen again under its lock. UnknowableError when the storage is away.
    """
    owners = await _still_wrong(engine, storage, kind, findings)
    outcomes: list[Outcome] = []
    wrong: list[Finding] = []
    for one in findings:
        owner = owners.get(one.path or "")
        if owner is not None and owner.blob_id == one.blob_id:
            wrong.append(one)
        else:
            outcomes.append(Outcome(one, Result.SKIPPED, f"it is not {kind} any more"))
    retired, references = await _retired(engine, kind, wrong)
    return outcomes + retired, references


async def _still_wrong(
    engine: Engine, storage: str, kind: FindingKind, findings: Sequence[Finding]
) -> Mapping[str, Owner]:
    paths = [one.path for one in findings if one.path is not None]
    if kind is FindingKind.UNREFERENCED:
        owners = await _owners(engine, storage, paths)
        return {path: owner for path, owner in owners.items() if owner.is_live and not owner.referenced}
    probe = Probe(engine, storage)
    await probe.verify()
    sizes = await probe.sizes(paths)
    digests = None
    if kind is FindingKind.CORRUPT:
        digests = await probe.digests({path: size for path, size in sizes.items() if size is not None})
    await probe.verify()
    owners = await _owners(engine, storage, paths)
    return {owner.path: owner for found, owner, _ in verdicts(owners, sizes, digests) if found is kind}


async def _owners(engine: Engine, storage: str, paths: Sequence[str]) -> Mapping[str, Owner]:
    async with engine.database.reading() as connection:
        return await inventory.owners(connection, storage, paths)


async def _retired(engine: Engine, kind: FindingKind, findings: Sequence[Finding]) -> tuple[list[Outcome], int]:
    if not findings:
        return [], 0
    try:
        return await _retired_together(engine, kind, findings)
    except Busy as error:
        if len(findings) == 1:
            return all_ended(findings, Result.FAILED, str(error)), 0
    # One of them is locked for longer than we wait; the others need not suffer from it.
    outcomes: list[Outcome] = []
    references = 0
    for one in findings:
        ended, n = await _retired(engine, kind, [one])
        outcomes += ended
        references += n
    return outcomes, references


async def _retired_together(
    engine: Engine, kind: FindingKind, findings: Sequence[Finding]
) -> tuple[list[Outcome], int]:
    blob_ids = [one.blob_id for one in findings if one.blob_id is not None]
    unreferenced: set[uuid.UUID] = set()
    why = f"fsck found it {kind}; its references were deleted, its bytes are kept" if kind in _KEPT else None

    async def work(own: AsyncConnection) -> tuple[Sequence[AnyRow], set[object]]:
        deleted, turned = await inventory.retire(own, blob_ids, quarantined_because=why)
        unreferenced.update(row.blob_id for row in deleted)
        # fail point: repair.retired
        detail = json.dumps({"rule": "fsck", "finding": str(kind)})
        await operation.write_deleted(own, "fsck", engine.instance_id, deleted, [detail] * len(deleted))
        return deleted, set(turned)

    deleted, turned = await engine.database.transaction(
        work, keys=[], what="Repairing", ended=lambda: engine.forget(unreferenced)
    )
    # fail point: repair.committed
    outcomes = [
        Outcome(one, Result.REPAIRED, "quarantined" if why else "left to the reaper")
        if one.blob_id in turned
        else Outcome(one, Result.SKIPPED, "it was deleted, or referred to anew, meanwhile")
        for one in findings
    ]
    return outcomes, len(deleted)
