"""A check: part by part through the storages, into a plan that can be resumed at any part."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from bdr.catalog import inventory, operation
from bdr.catalog import storage as known_storages
from bdr.errors import Busy, ConfigError, StorageMismatch
from bdr.fsck.counts import check_counts
from bdr.fsck.findings import CATALOG, COUNTS, PARTS, FsckReport, Place, Unknown
from bdr.fsck.part import PartCheck
from bdr.fsck.places import place_of, require_place, require_same_catalog
from bdr.fsck.plan import Done, Finished, Header, PlanWriter, new_plan, reopened_plan, summary
from bdr.fsck.probe import Probe, UnknowableError
from bdr.manager import BinaryDataManager
from bdr.manager.engine import Engine
from bdr.manager.operations import OnProgress
from bdr.progress import OperationStatus

logger = logging.getLogger(__name__)


async def check(
    binary: BinaryDataManager,
    plan: Path,
    *,
    checksum: bool = False,
    storages: Collection[str] | None = None,
    operation_id: uuid.UUID | str | None = None,
    on_progress: OnProgress | None = None,
) -> FsckReport:
    """Compare the catalog with its storages; what differs is written to `plan`, a new file, and nothing is changed.

    Safe beside any number of engines and reapers. What cannot be told for sure is reported as unknown, never as wrong.
    When it is interrupted, or the catalog is lost, `resume` goes on where it was.

    Args:
        plan: one JSON object a line.
        checksum: read all bytes and compare them with the SHA-256 that was recorded, rather than only the sizes.
        storages: by their names in the catalog; all that the catalog knows when None.
        operation_id: under which to ask for progress, from any instance.
        on_progress: called with the progress, in bytes of live blobs; their total is unknown when it takes too long to
            find out.

    Raises:
        InvalidArgument: the plan's file is there already or cannot be made.
        ConfigError: the catalog has no storage of that name.
    """
    engine = binary.engine
    engine.require_open()
    async with engine.database.reading() as connection:
        known = {one.name: one for one in await known_storages.known(connection)}
        begun_at = await inventory.now(connection)
    for name in storages or ():
        if name not in known:
            raise ConfigError(f"The catalog knows no storage '{name}'; it knows {', '.join(sorted(known)) or 'none'}.")
    places = {name: place_of(one) for name, one in known.items() if storages is None or name in storages}
    header = Header(catalog_id=engine.catalog_id, begun_at=begun_at, checksum=checksum, places=places)
    writer = await asyncio.to_thread(new_plan, plan, header)
    return await _run(binary, plan, writer, operation_id, on_progress)


async def resume(
    binary: BinaryDataManager,
    plan: Path,
    *,
    operation_id: uuid.UUID | str | None = None,
    on_progress: OnProgress | None = None,
) -> FsckReport:
    """Go on with a check: with the parts that it did not come to, or could not examine. As `check`.

    Raises:
        InvalidArgument: the file is no plan, or another process is writing it.
        StorageMismatch: it is the plan of another catalog.
    """
    binary.engine.require_open()
    writer = await asyncio.to_thread(reopened_plan, plan)
    try:
        require_same_catalog(binary.engine, writer.header.catalog_id)
    except StorageMismatch:
        writer.close()
        raise
    return await _run(binary, plan, writer, operation_id, on_progress)


async def _run(
    binary: BinaryDataManager,
    path: Path,
    plan: PlanWriter,
    operation_id: uuid.UUID | str | None,
    on_progress: OnProgress | None,
) -> FsckReport:
    database = binary.engine.database
    try:
        total = await _total(binary.engine, plan)
        begun = await binary.operations.begin(
            "fsck", operation_id=operation_id, total_bytes=total, on_progress=on_progress
        )
        with begun as running:
            for name, place in plan.header.places.items():
                await _check_storage(binary.engine, plan, name, place, running.advance)
            if (CATALOG, COUNTS) not in plan.done:
                await asyncio.to_thread(plan.commit, await check_counts(binary.engine, plan))
            async with database.reading() as connection:
                ended = Finished(finished_at=await inventory.now(connection))
            await asyncio.to_thread(plan.commit, ended)
            report = await asyncio.to_thread(summary, path)
            detail = report.model_dump(mode="json", include={"checksum", "findings", "examined", "unknown"})
            record = replace(running.record(OperationStatus.SUCCEEDED), detail=detail)
            await database.write(lambda own: operation.write_ended(own, [record]))
    finally:
        plan.close()
    return report


async def _total(engine: Engine, plan: PlanWriter) -> int | None:
    try:
        async with engine.database.reading() as connection:
            total = await inventory.total_size(connection, list(plan.header.places))
        return max(0, total - plan.bytes_done)
    except Busy:
        # It is only for the progress: with very many blobs one statement cannot add them up in its time.
        return None


async def _check_storage(
    engine: Engine, plan: PlanWriter, name: str, place: Place, advance: Callable[[int], None]
) -> None:
    left = [part for part in PARTS if (name, part) not in plan.done]
    if not left:
        return
    probe = Probe(engine, name)
    try:
        await require_place(engine, name, place)
        await probe.verify()
        while left:
            line = await _check_part(PartCheck(engine, probe, plan, name, left[0], advance))
            await probe.verify()
            await asyncio.to_thread(plan.commit, line)
            del left[0]
    except (UnknowableError, StorageMismatch) as trouble:
        # The rest is not tried: each part would wait for the same time-outs, and learn no more.
        plan.rollback()
        logger.warning("Storage %r could not be checked: %s", name, trouble)
        await asyncio.to_thread(plan.commit, Unknown(storage=name, parts=left, reason=str(trouble)))


async def _check_part(part: PartCheck) -> Done | Unknown:
    try:
        return await part.run()
    except UnknowableError as trouble:
        part.undo()
        return Unknown(storage=part.storage, parts=[part.name], reason=str(trouble))
