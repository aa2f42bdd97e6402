"""A repair: through a plan that was looked at, each item compared again before it is touched."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

from bdr.catalog import operation
from bdr.errors import InvalidArgument, TooMuch
from bdr.fsck.counts import correct_counts
from bdr.fsck.findings import CATALOG, Examined, Finding, FindingKind, FsckReport
from bdr.fsck.outcome import Outcome, RepairReport, Result, all_ended
from bdr.fsck.places import require_place, require_same_catalog
from bdr.fsck.plan import read_plan, summary
from bdr.fsck.probe import UnknowableError
from bdr.fsck.quarantine import move_orphans
from bdr.fsck.retire import retire_blobs
from bdr.manager import BinaryDataManager
from bdr.manager.engine import Engine
from bdr.manager.operations import OnProgress
from bdr.progress import OperationStatus
from bdr.settings import FsckConfig

logger = logging.getLogger(__name__)


async def repair(
    binary: BinaryDataManager,
    plan: Path,
    *,
    confirmed: bool = False,
    on_outcome: Callable[[Outcome], None] | None = None,
    operation_id: uuid.UUID | str | None = None,
    on_progress: OnProgress | None = None,
) -> RepairReport:
    """Repair what a finished plan says; what is not so any more is skipped.

    Orphans are moved to `.bdr-quarantine/` of their storage. The references of missing, truncated and corrupt blobs are
    deleted, each with a record; the blob is deleted when nothing of it is there, and else kept in quarantine. Blobs
    without a reference are deleted by the next reap. It may be repeated, interrupted, and run beside anything else.

    Args:
        confirmed: repair even a plan for a larger share of a storage than `fsck.max_share`.
        on_outcome: told what became of each item.

    Raises:
        InvalidArgument: the file is no plan, or its check has not come to its end.
        StorageMismatch: the plan is of another catalog, or a storage is another place by now.
        TooMuch: it is for too large a share, and not confirmed; nothing was changed.
    """
    engine = binary.engine
    engine.require_open()
    found = await asyncio.to_thread(summary, plan)
    require_same_catalog(engine, found.catalog_id)
    if not found.finished:
        raise InvalidArgument(f"The check of the plan {plan} has not come to its end; resume it first.")
    for name in found.findings.keys() & found.places.keys():
        await require_place(engine, name, found.places[name])
    if not confirmed:
        require_modest(found, engine.settings.fsck)
    report = RepairReport()
    begun = await binary.operations.begin(
        "fsck_repair", operation_id=operation_id, total_bytes=found.bytes_found, on_progress=on_progress
    )
    with begun as running:
        batches = _batches(plan, engine.settings.fsck.batch_size)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            for outcome in await _repaired(engine, batch, report):
                report.add(outcome)
                running.advance(outcome.finding.size or 0)
                if on_outcome is not None:
                    on_outcome(outcome)
        # fail point: repair.ended
        record = replace(running.record(OperationStatus.SUCCEEDED), detail=report.model_dump(mode="json"))
        await engine.database.write(lambda own: operation.write_ended(own, [record]))
    logger.info("Repaired: %s", report.model_dump(mode="json"))
    return report


def require_modest(found: FsckReport, limits: FsckConfig) -> None:
    """TooMuch when a plan is for a larger share of any storage than a repair may change unasked.

    A storage that was emptied or exchanged, and a catalog that was restored from the wrong backup, look like this.
    """
    for name, kinds in found.findings.items():
        items = sum(kinds.values())
        known = found.examined.get(name, Examined()).blobs
        if items > limits.max_items and items > limits.max_share * known:
            what = "references of the catalog" if name == CATALOG else f"blobs of storage '{name}'"
            raise TooMuch(
                f"The plan is to change {items} things, and there are {known} {what}: that is more than "
                f"{limits.max_share:.1%} (fsck.max_share) and more than {limits.max_items} (fsck.max_items). See "
                "whether the catalog or the storage was exchanged or restored; if all is meant, confirm the repair."
            )


def _batches(plan: Path, size: int) -> Iterator[list[Finding]]:
    findings = (line for line in read_plan(plan) if isinstance(line, Finding))
    while batch := list(islice(findings, size)):
        yield batch


async def _repaired(engine: Engine, batch: list[Finding], report: RepairReport) -> list[Outcome]:
    outcomes: list[Outcome] = []
    batch.sort(key=_group)
    for (storage, kind), group in groupby(batch, _group):
        outcomes += await _repaired_alike(engine, storage, kind, list(group), report)
    return outcomes


def _group(finding: Finding) -> tuple[str, FindingKind]:
    return finding.storage, finding.kind


async def _repaired_alike(
    engine: Engine, storage: str, kind: FindingKind, findings: Sequence[Finding], report: RepairReport
) -> list[Outcome]:
    if kind is FindingKind.COUNT:
        return await correct_counts(engine, findings)
    try:
        if kind is FindingKind.ORPHAN:
            return await move_orphans(engine, storage, findings)
        outcomes, references = await retire_blobs(engine, storage, kind, findings)
    except UnknowableError as trouble:
        return all_ended(findings, Result.FAILED, str(trouble))
    report.references += references
    return outcomes
