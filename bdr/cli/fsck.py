"""`bdr fsck`: what differs between the catalog and its storages, looked at first and repaired by a plan."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter

from bdr.cli.failures import DONE, FAILED, UsageError, say
from bdr.cli.options import Common, Given, Json
from bdr.cli.output import JsonList, emit, emit_json, emit_table
from bdr.cli.progress import OnProgress, transfer
from bdr.cli.text import NOTHING, several, shown, size
from bdr.errors import BinaryStorageError, ConfigError, InvalidArgument, OperationError, TooMuch

if TYPE_CHECKING:
    from bdr.fsck import Finding, FsckReport, Outcome, RepairReport
    from bdr.lifecycle import BinaryDataLifecycleManager

    Check: TypeAlias = Callable[[BinaryDataLifecycleManager, OnProgress | None], Awaitable[FsckReport]]

_MEANINGS = {
    "missing": "blobs whose object is not there",
    "truncated": "blobs whose object has another size",
    "corrupt": "blobs whose object has other bytes",
    "orphan": "objects that no blob owns",
    "unreferenced": "blobs that no reference needs",
    "count": "references whose numbers contradict what they count",
}
# The catalog's own part of a report.
_CATALOG = "catalog"


async def fsck(
    *,
    plan: Annotated[str | None, Parameter(name=("--plan", "-o"))] = None,
    storage: list[str] | None = None,
    checksum: bool = False,
    resume: str | None = None,
    show: str | None = None,
    repair: str | None = None,
    confirm: bool = False,
    as_json: Json = False,
    common: Given,
) -> int:
    """Compare the catalog with its storages; repair what differs.

    A check changes nothing. What differs goes into a plan, a file of JSON lines;
    look at it, then repair it. Each item is compared again before it is touched,
    and what nobody owns is moved aside, not deleted. Engines and reapers may go
    on meanwhile.

    The exit code of a check is 0 when all is well, and 1 when anything differs
    or could not be told; of a repair 0 when all of the plan was repaired.

    For example:
        bdr fsck -o fsck.plan
        bdr fsck --show fsck.plan
        bdr fsck --repair fsck.plan

    Args:
        plan: The new file to write; fsck-TIME.plan, kept only when all is not well, if it is not given.
        storage: Only this storage. May be repeated.
        checksum: Read all bytes and compare their checksums, not only sizes.
        resume: Go on with the check of this plan, where it ended or where a storage did not answer.
        show: List what this plan says is wrong; asks neither catalog nor storages.
        repair: Repair what this plan says is wrong, where it still is.
        confirm: Repair even a plan for a large share of a storage.
    """
    _only_one({"--resume": resume, "--show": show, "--repair": repair}, new=bool(plan or storage or checksum))
    if confirm and repair is None:
        raise UsageError("--confirm belongs to --repair.")
    if show is not None:
        return _show(Path(show), as_json=as_json)
    if repair is not None:
        return await _repair(Path(repair), common, confirmed=confirm, as_json=as_json)
    if resume is not None:
        return await _check(Path(resume), common, _resumed(Path(resume)), keep=True, as_json=as_json)
    path = Path(plan or f"fsck-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.plan")
    begun = _begun(path, storage, checksum=checksum)
    return await _check(path, common, begun, keep=plan is not None, as_json=as_json)


def _only_one(plans: dict[str, str | None], *, new: bool) -> None:
    given = [option for option, path in plans.items() if path is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are different things to do: give one of them.")
    if given and new:
        raise UsageError(f"--plan, --storage and --checksum are for a new check; {given[0]} has its plan already.")


def _begun(plan: Path, storages: list[str] | None, *, checksum: bool) -> "Check":
    async def begun(binary: "BinaryDataLifecycleManager", on_progress: OnProgress | None) -> "FsckReport":
        from bdr.fsck import check

        return await check(binary, plan, storages=storages or None, checksum=checksum, on_progress=on_progress)

    return begun


def _resumed(plan: Path) -> "Check":
    async def resumed(binary: "BinaryDataLifecycleManager", on_progress: OnProgress | None) -> "FsckReport":
        from bdr.fsck import resume

        return await resume(binary, plan, on_progress=on_progress)

    return resumed


async def _check(plan: Path, common: Common, run: "Check", *, keep: bool, as_json: bool) -> int:
    from bdr.connect import connect

    async with connect(settings=common.settings_to_connect()) as binary:
        with _can_be_resumed(plan), transfer("Checking") as on_progress:
            report = await run(binary, on_progress)
    kept = _kept(plan, report, keep=keep)
    if as_json:
        emit_json({"plan": kept, "is_clean": report.is_clean} | report.model_dump(mode="json"))
    else:
        emit_table(("STORAGE", "RESULT", "COUNT", "DETAIL"), _rows(report))
    return _concluded(report, plan)


@contextmanager
def _can_be_resumed(plan: Path) -> Iterator[None]:
    try:
        yield
    except (InvalidArgument, ConfigError):
        raise
    except (BinaryStorageError, asyncio.CancelledError):
        if plan.exists():
            say(f"The check was broken off; `bdr fsck --resume {_quoted(plan)}` goes on where it was.")
        raise


def _kept(plan: Path, report: "FsckReport", *, keep: bool) -> str | None:
    if keep or not report.is_clean:
        return str(plan)
    plan.unlink(missing_ok=True)
    return None


def _show(plan: Path, *, as_json: bool) -> int:
    from bdr.fsck import Finding, read_plan, summary

    report = summary(plan)
    with JsonList() if as_json else nullcontext() as listed:
        for line in read_plan(plan):
            if not isinstance(line, Finding):
                continue
            if listed is not None:
                listed.add(line.model_dump(mode="json", exclude={"line"}))
            else:
                emit("\t".join(map(shown, (line.kind, line.storage, line.path or NOTHING, _detail(line)))))
    return _concluded(report, plan)


async def _repair(plan: Path, common: Common, *, confirmed: bool, as_json: bool) -> int:
    from bdr.connect import connect
    from bdr.fsck import Result, repair

    async with connect(settings=common.settings_to_connect()) as binary:
        try:
            with transfer("Repairing") as on_progress:
                report = await repair(
                    binary, plan, confirmed=confirmed, on_outcome=_tell_unless_repaired, on_progress=on_progress
                )
        except TooMuch as error:
            again = f"Nothing was changed; `bdr fsck --repair {_quoted(plan)} --confirm` repairs it all the same."
            raise OperationError(f"{error}\n{again}") from error
    if as_json:
        emit_json(report.model_dump(mode="json"))
    else:
        emit_table(("RESULT", "WHAT", "COUNT"), _results(report))
    left = report.count(Result.SKIPPED) + report.count(Result.FAILED)
    return FAILED if left else DONE


def _tell_unless_repaired(outcome: "Outcome") -> None:
    from bdr.fsck import Result

    if outcome.result is not Result.REPAIRED:
        found = outcome.finding
        what = found.path or ", ".join(found.file_keys)
        say(f"{outcome.result}: {found.kind} {what} in {found.storage}: {outcome.why}")


def _results(report: "RepairReport") -> Iterator[tuple[str, ...]]:
    for result, kinds in report.results.items():
        for kind, count in kinds.items():
            yield result, kind, str(count)
    if report.references:
        yield "deleted", "references whose bytes are lost", str(report.references)


def _rows(report: "FsckReport") -> Iterator[tuple[str, ...]]:
    for name in (*report.places, _CATALOG):
        if (seen := report.examined.get(name)) is not None:
            objects = f"blobs with {size(seen.bytes)}, and {several(seen.objects, 'object')}"
            yield name, "examined", str(seen.blobs), "references" if name == _CATALOG else objects
        for kind, count in report.findings.get(name, {}).items():
            yield name, kind, str(count), _MEANINGS[kind]
    for one in report.unknown:
        yield one.storage, "unknown", str(len(one.parts)), f"parts of the storage: {one.reason}"


def _detail(finding: "Finding") -> str:
    parts = [] if finding.size is None else [size(finding.size)]
    if finding.found_size is not None:
        parts.append(f"{size(finding.found_size)} found")
    if finding.references is not None:
        parts.append(several(finding.references, "reference"))
    if finding.file_keys:
        parts.append(f"such as {', '.join(finding.file_keys)}")
    if finding.why is not None:
        parts.append(finding.why)
    return "; ".join(parts) or NOTHING


def _concluded(report: "FsckReport", plan: Path) -> int:
    """Say what to do next; gives back the exit code."""
    if not report.finished:
        say(f"The check has not come to its end; `bdr fsck --resume {_quoted(plan)}` goes on.")
    if report.count():
        say(
            f"{several(report.count(), 'difference')}. Look at them with `bdr fsck --show {_quoted(plan)}`; "
            f"`bdr fsck --repair {_quoted(plan)}` repairs them."
        )
    if report.unknown:
        say(f"Not all could be told. Where that has changed, `bdr fsck --resume {_quoted(plan)}` looks again.")
    return DONE if report.is_clean else FAILED


def _quoted(plan: Path) -> str:
    return shlex.quote(str(plan))
