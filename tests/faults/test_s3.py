"""An S3 server behind a proxy that meddles: for each fault and operation, what the caller is told and how it ends."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import bdr
from bdr.errors import Corrupt, Lost, PermissionDenied, StorageFull, StorageUnavailable
from bdr.fsck import FindingKind, Result
from tests.faults.conftest import Bucket
from tests.faults.support import KEPT, Binary, require_nothing_lost, require_well, stuck
from tests.fixtures.http_proxy import Request, When
from tests.fsck.support import checked, repaired
from tests.guarantees import objects_in
from tests.lifecycle.support import change, chunks, make_due, rows
from tests.reaper.support import expired, path_of

# Which object, in which storage, and what happened.
SENTENCE: Final = (
    r"(could not \w+ \S+ in storage 'main' at s3://|The object of '|[^ ]+ in storage 'main' at s3://).{20,}"
)
MiB: Final = 1024 * 1024


Errors = dict[str, type[bdr.BinaryStorageError]]


@dataclass(frozen=True)
class Operation:
    """What a caller does, and which of its requests meet the fault."""

    run: Callable[[Binary, str], Awaitable[object]]
    when: When


async def _stream(binary: Binary, key: str) -> bytes:
    async with binary.open(key) as reader:
        return b"".join([part async for part in reader])


def _is_object(request: Request) -> bool:
    return not request.path.endswith(".bdr-storage") and "list-type" not in request.query


def _of(method: str, query: str | None = None) -> When:
    def when(request: Request) -> bool:
        return request.method == method and _is_object(request) and (query is None or query in request.query)

    return when


async def _store(binary: Binary, _: str) -> object:
    return await binary.store_data(b"new" * 100)


async def _store_in_parts(binary: Binary, _: str) -> object:
    return await binary.store_stream(chunks(*[b"x" * 8 * MiB] * 2, b"y" * MiB))


OPERATIONS: Final = {
    "store": Operation(_store, _of("PUT")),
    "store, beginning its parts": Operation(_store_in_parts, _of("POST", "uploads")),
    "store, in its second part": Operation(_store_in_parts, lambda request: request.query.get("partNumber") == "2"),
    "store, joining its parts": Operation(_store_in_parts, _of("POST", "uploadId")),
    "get": Operation(lambda binary, key: binary.get_data(key), _of("GET")),
    "open": Operation(_stream, _of("GET")),
    "range": Operation(lambda binary, key: binary.get_range(key, 100, 1000), _of("GET")),
    "exists": Operation(lambda binary, key: binary.data_exists(key), _of("HEAD")),
}
# What no answer comes to, and a refusal, whatever was asked.
UNANSWERED: Final[Errors] = dict.fromkeys(
    ("500 before", "500 after", "503 slow down", "cut before", "cut after", "hung before", "hung after"),
    StorageUnavailable,
)
REFUSED: Final[Errors] = {"403": PermissionDenied}
WRITES: Final[Errors] = UNANSWERED | REFUSED | {"507": StorageFull}
LOOKS: Final[Errors] = UNANSWERED | REFUSED
READS: Final[Errors] = LOOKS | {
    "broken off": StorageUnavailable,
    "404": Lost,
    "shortened": Corrupt,
    "welcomed": Corrupt,
}
WHOLE_READS: Final[Errors] = READS | {"flipped": Corrupt}

# Large writes take their time, so how long a hung one is waited for is shown by the small ones.
PARTS: Final[Errors] = {fault: error for fault, error in WRITES.items() if "hung" not in fault}
TOLD: Final[dict[str, Errors]] = {
    "store": WRITES,
    "store, beginning its parts": PARTS,
    "store, in its second part": PARTS,
    "store, joining its parts": PARTS | {"error in success": StorageUnavailable},
    "get": WHOLE_READS,
    "open": WHOLE_READS,
    "range": READS,
    "exists": LOOKS,
}
PASSING: Final = ("500 before", "503 slow down", "cut before", "cut after")


@pytest.mark.parametrize("operation", TOLD)
async def test_a_fault_is_told_as_what_it_is_and_leaves_nothing_behind(
    bucket: Bucket, subtests: pytest.Subtests, operation: str
) -> None:
    kept = {(await bucket.binary.store_data(KEPT)).file_key: KEPT}
    (key,) = kept
    doing = OPERATIONS[operation]
    for fault, error in TOLD[operation].items():
        with subtests.test(fault):
            async with asyncio.timeout(60):
                with bucket.meeting(fault, doing.when), pytest.raises(error, match=SENTENCE) as told:
                    await doing.run(bucket.hasty if "hung" in fault else bucket.binary, key)
            assert type(told.value) is error
            await require_nothing_lost(bucket.binary, kept)
    await require_well(bucket.binary, kept)


@pytest.mark.parametrize("operation", ["get", "open", "range", "exists"])
async def test_a_fault_that_passes_is_not_noticed_by_who_reads(bucket: Bucket, operation: str) -> None:
    key = (await bucket.binary.store_data(KEPT)).file_key
    doing = OPERATIONS[operation]
    for fault in PASSING:
        with bucket.meeting(fault, doing.when, times=1):
            assert await doing.run(bucket.hasty, key) in (True, KEPT, KEPT[100:1100])


async def test_a_range_of_wrong_bytes_cannot_be_told_and_the_whole_can(bucket: Bucket) -> None:
    key = (await bucket.binary.store_data(KEPT)).file_key
    with bucket.meeting("flipped", _of("GET")):
        given = await bucket.hasty.get_range(key, 100, 1000)
    assert sum(one != other for one, other in zip(given, KEPT[100:1100], strict=True)) == 1


# Deletes: the reference is gone at once, the object when its storage allows it


def _everywhere(_: Request) -> bool:
    return True


@pytest.mark.parametrize("by", ["delete", "reap"])
@pytest.mark.parametrize("met", ["its delete", "everything"])
async def test_a_delete_that_fails_is_left_to_a_reaper_that_is_told_why(
    bucket: Bucket, subtests: pytest.Subtests, by: str, met: str
) -> None:
    binary, hasty = bucket.binary, bucket.hasty
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    for fault in LOOKS:
        with subtests.test(fault):
            (key,) = await expired(binary)
            with bucket.meeting(fault, _of("DELETE") if met == "its delete" else _everywhere):
                async with asyncio.timeout(60):
                    if by == "reap":
                        report = await hasty.reap()
                    else:
                        await hasty.delete_data(key)
                        report = None
            if met == "everything":
                if report is not None:
                    # It never began: the marker could not be read.
                    assert (report.references, list(report.unreachable)) == (0, ["main"])
                    await binary.delete_data(key)
                else:
                    ((state, attempts, why, _),) = await stuck(binary)
                    assert (state, attempts) == ("deleting", 0)
                    assert "could not read .bdr-storage in storage 'main'" in why
            else:
                if report is not None:
                    assert (report.references, report.failed, report.blobs) == (1, 1, 0)
                    # Whatever may mean that the storage is away ends its part of the pass.
                    assert list(report.unreachable) == ([] if fault == "403" else ["main"])
                    assert "could not be deleted and will be tried again: 1" in (report.trouble or "")
                ((state, attempts, why, _),) = await stuck(binary)
                assert (state, attempts) == ("deleting", 1)
                assert "could not delete" in why
            await require_well(binary, kept)


async def test_what_fails_too_often_is_quarantined_and_seen_and_goes_when_a_person_says_so(bucket: Bucket) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    await expired(binary)
    limit = binary.engine.settings.reaper.max_attempts
    with bucket.meeting("403", _of("DELETE")):
        for attempt in range(1, limit + 1):
            report = await binary.reap()
            assert (report.failed, report.quarantined) == ((1, 0) if attempt < limit else (0, 1))
            ((state, attempts, why, waits),) = await stuck(binary)
            assert (state, attempts) == ("deleting" if attempt < limit else "quarantined", attempt)
            assert "check the credentials" in why
            assert waits is (None if attempt == limit else waits)
            await make_due(binary)
        assert (await binary.reap()).is_empty
    # Well again, it stays where it is until somebody has looked.
    assert (await binary.reap()).is_empty
    assert [row[0] for row in await stuck(binary)] == ["quarantined"]
    await change(
        binary,
        "UPDATE bdr.blob SET state = 'deleting', attempts = 0, next_attempt_at = now() WHERE state = 'quarantined'",
    )
    await require_well(binary, kept)


async def test_a_storage_that_is_away_for_many_passes_uses_up_no_attempt(bucket: Bucket) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    (key,) = await expired(binary)
    with bucket.meeting("cut before", _of("DELETE")):
        await binary.delete_data(key)
    before = await stuck(binary)
    with bucket.meeting("500 before", _everywhere):
        for _ in range(binary.engine.settings.reaper.max_attempts + 2):
            await make_due(binary)
            report = await binary.reap()
            assert (list(report.unreachable), report.failed, report.quarantined) == (["main"], 0, 0)
            assert "InternalError" in report.unreachable["main"]
    assert [row[:3] for row in await stuck(binary)] == [row[:3] for row in before]
    await require_well(binary, kept)


# Writes that land when nobody expects them any more


async def test_a_write_that_lands_after_its_retry_was_stored_released_and_deleted_is_removed(
    bucket: Bucket,
) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    with bucket.meeting("late", _of("PUT"), times=1):
        with pytest.raises(StorageUnavailable, match="timeout"):
            await bucket.hasty.store_data(b"new" * 100)
        again = (await binary.store_data(b"new" * 100)).file_key
        assert await binary.release_reference(again) == 0
        assert await binary.cleanup_data(again)
        ((state, *_),) = await stuck(binary)
        assert state == "deleting"
        assert len(await objects_in(binary.engine.storage("main"))) == 1
    await bucket.landed()
    assert len(await objects_in(binary.engine.storage("main"))) == 2
    await require_well(binary, kept)


async def test_a_write_that_lands_even_after_its_row_is_gone_is_found_and_put_into_quarantine(
    bucket: Bucket, plan: Path
) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    with bucket.meeting("late", _of("PUT"), times=1):
        with pytest.raises(StorageUnavailable, match="timeout"):
            await bucket.hasty.store_data(b"new" * 100)
        ((path,),) = await rows(binary, "SELECT object_path FROM bdr.stuck_blob")
        await make_due(binary)
        assert (await binary.reap()).blobs == 1
    await bucket.landed()
    report, found = await checked(binary, plan)
    assert (found, report.unknown) == ({(FindingKind.ORPHAN, path)}, [])
    assert [result for _, result in await repaired(binary, plan, confirmed=True)] == [Result.REPAIRED]
    ((state, *_),) = await stuck(binary)
    assert state == "quarantined"
    await change(binary, "UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now() WHERE state = 'quarantined'")
    await require_well(binary, kept)


# A storage that lies


@pytest.mark.parametrize(
    ("lie", "error", "kind"),
    [
        ("forgotten", Lost, FindingKind.MISSING),
        ("kept wrongly", Corrupt, FindingKind.CORRUPT),
    ],
)
async def test_a_write_that_was_not_kept_as_told_is_noticed_by_readers_and_by_a_check(
    bucket: Bucket, plan: Path, lie: str, error: type[bdr.BinaryStorageError], kind: FindingKind
) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    with bucket.meeting(lie, _of("PUT")):
        key = (await binary.store_data(b"new" * 100)).file_key
    with pytest.raises(error):
        await binary.get_data(key)
    report, found = await checked(binary, plan, checksum=True)
    assert (found, report.unknown) == ({(kind, await path_of(binary, key))}, [])
    await binary.delete_data(key)
    await require_well(binary, kept)


@pytest.mark.parametrize("lie", ["forgotten", "404", "welcomed"])
async def test_a_delete_that_was_not_done_as_told_is_found_by_a_check(bucket: Bucket, plan: Path, lie: str) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    key = (await binary.store_data(b"doomed" * 100)).file_key
    path = await path_of(binary, key)
    with bucket.meeting(lie, _of("DELETE")):
        await binary.delete_data(key)
    if await stuck(binary) == []:
        report, found = await checked(binary, plan)
        assert (found, report.unknown) == ({(FindingKind.ORPHAN, path)}, [])
        assert [result for _, result in await repaired(binary, plan, confirmed=True)] == [Result.REPAIRED]
        release = "UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now() WHERE state = 'quarantined'"
        await change(binary, release)
    await require_well(binary, kept)


# A check


def _lists(request: Request) -> bool:
    return "list-type" in request.query


CHECKED: Final = [
    ("500 before", _lists, "could not list"),
    ("403", _lists, "could not list"),
    ("404", _lists, "left out|could not list"),
    ("cut after", _lists, "could not list"),
    ("broken off", _lists, "could not list"),
    ("welcomed", _lists, "left out|could not list"),
    ("ended early", _lists, "left out"),
    ("hung before", _lists, "could not list"),
    ("403", _of("GET"), "could not read"),
    ("broken off", _of("GET"), "could not read"),
]


@pytest.mark.parametrize(("fault", "when", "reason"), CHECKED)
async def test_a_check_that_meets_a_fault_does_not_know_and_says_so(
    bucket: Bucket, plan: Path, fault: str, when: When, reason: str
) -> None:
    binary = bucket.binary
    kept = {(await binary.store_data(KEPT)).file_key: KEPT}
    folder = (await path_of(binary, next(iter(kept))))[:2]
    orphan = f"{folder}/0"
    await binary.engine.storage("main").store(orphan, b"nobody's")

    def meets(request: Request) -> bool:
        inside = request.query.get("prefix", request.path.rpartition("/")[0] + "/").endswith(f"/{folder}/")
        return when(request) and inside and not request.path.endswith(orphan)

    with bucket.meeting(fault, meets):
        report, found = await checked(bucket.hasty, plan, checksum=True)
    # What nobody owns can be told only where the rest was, and no reference is said to be lost.
    assert found <= {(FindingKind.ORPHAN, orphan)} if when is not _lists else found == set()
    ((unknown),) = report.unknown
    assert unknown.parts == [folder]
    assert re.search(reason, unknown.reason)
    await binary.engine.storage("main").delete(orphan)
    await require_well(binary, kept)
