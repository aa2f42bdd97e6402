"""Objects that cannot be deleted: tried again with a growing back-off, then quarantined, and no harm to the others."""

from datetime import timedelta
from pathlib import Path

import pytest

from bdr import BinaryDataLifecycleManager, LifecycleCleanupConfig, ReaperConfig
from tests.fixtures.engines import AT_ONCE, Connect
from tests.guarantees import objects_in
from tests.lifecycle.support import change, make_due, rows
from tests.reaper.support import (
    EAGER,
    HOUR,
    blobs,
    expired,
    folder_of,
    keys_left,
    make_deletable,
    make_undeletable,
    path_of,
    records,
)

UNTIL_NEXT_ATTEMPT = "SELECT next_attempt_at - now() FROM bdr.blob"
QUARANTINED = "SELECT object_path, last_error FROM bdr.blob WHERE state = 'quarantined'"


async def undeletable(binary: BinaryDataLifecycleManager, number: int = 1) -> Path:
    """Expired files, the last of which cannot be deleted; gives back where it lies."""
    *_, last = await expired(binary, number)
    path = folder_of(binary) / await path_of(binary, last)
    make_undeletable(path)
    return path


async def test_one_failure_does_not_undo_the_others(connect: Connect) -> None:
    binary = await connect(reaper=ReaperConfig(batch_size=3, concurrency=2))
    path = await undeletable(binary, 7)
    report = await binary.reap()
    assert (report.references, report.blobs, report.failed, report.quarantined) == (7, 6, 1, 0)
    assert await keys_left(binary) == set()
    ((state, attempts, error, has_next),) = await blobs(binary)
    assert (state, attempts, has_next) == ("deleting", 1, True)
    assert "could not delete" in error
    assert path.name in error
    # Not due for a while: the next pass has nothing to do.
    assert (await binary.reap()).is_empty
    make_deletable(path)
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_the_back_off_doubles_up_to_its_maximum_less_a_jitter(connect: Connect) -> None:
    longest = timedelta(hours=3)
    settings = ReaperConfig(max_attempts=100, backoff_initial=HOUR, backoff_max=longest)
    binary = await connect(reaper=settings)
    await undeletable(binary)
    waits = []
    for expected in (HOUR, 2 * HOUR, longest, longest):
        await binary.reap()
        ((wait,),) = await rows(binary, UNTIL_NEXT_ATTEMPT)
        assert expected * 0.7 < wait <= expected
        waits.append(wait / expected)
        await make_due(binary)
    assert len({round(wait, 3) for wait in waits}) > 1


async def test_after_so_many_failures_a_person_decides(connect: Connect) -> None:
    binary = await connect(
        reaper=EAGER.model_copy(update={"max_attempts": 3, "backoff_initial": HOUR, "backoff_max": HOUR})
    )
    path = await undeletable(binary)
    reports = []
    for _ in range(3):
        await make_due(binary)
        reports.append(await binary.reap())
    assert [(report.failed, report.quarantined) for report in reports] == [(1, 0), (1, 0), (0, 1)]
    ((state, attempts, error, has_next),) = await blobs(binary)
    assert (state, attempts, has_next) == ("quarantined", 3, False)
    ((shown_path, shown_error),) = await rows(binary, QUARANTINED)
    assert path.match(f"*/{shown_path}")
    assert shown_error == error
    assert (await binary.reap()).is_empty
    passes = await records(binary, "reap_pass")
    assert [status for _, status, _, _ in passes] == ["failed"] * 3
    assert [trouble for _, _, trouble, _ in passes] == [
        "objects that could not be deleted and will be tried again: 1",
        "objects that could not be deleted and will be tried again: 1",
        "objects that are quarantined now: 1",
    ]
    # What the page for operators says to do, once the cause is mended.
    make_deletable(path)
    await change(
        binary,
        "UPDATE bdr.blob SET state = 'deleting', attempts = 0, next_attempt_at = now() WHERE state = 'quarantined'",
    )
    assert (await binary.reap()).blobs == 1
    assert await blobs(binary) == []


async def test_a_delete_at_once_that_fails_is_left_to_the_reaper(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(zero_ref_retention=AT_ONCE), reaper=EAGER)
    key = (await binary.store_data(b"data")).file_key
    path = folder_of(binary) / await path_of(binary, key)
    make_undeletable(path)
    assert await binary.release_reference(key) == 0
    assert "is left to the reaper" in caplog.text
    assert await keys_left(binary) == set()
    assert [row[:2] for row in await blobs(binary)] == [("deleting", 1)]
    make_deletable(path)
    await make_due(binary)
    assert (await binary.reap()).blobs == 1


async def test_a_storage_that_is_too_slow_for_the_lease_gets_its_claims_back_unharmed(connect: Connect) -> None:
    # Half of a millisecond is over before fifty objects are deleted one by one.
    hasty = await connect(reaper=ReaperConfig(lease=timedelta(milliseconds=1), concurrency=1))
    await expired(hasty, 50)
    report = await hasty.reap()
    assert 0 < report.blobs < 50
    assert "half of a lease" in report.unreachable["main"]
    assert {attempts for _, attempts, _, _ in await blobs(hasty)} == {0}
    patient = await connect()
    await make_due(patient)
    assert (await patient.reap()).blobs == 50 - report.blobs
    assert await objects_in(patient.engine.storage("main")) == set()


async def test_what_fails_again_and_again_does_not_keep_others_from_their_turn(connect: Connect) -> None:
    binary = await connect(reaper=ReaperConfig(batch_size=2, concurrency=1, backoff_initial=HOUR, backoff_max=HOUR))
    for _ in range(3):
        await undeletable(binary)
    await expired(binary, 3)
    report = await binary.reap()
    assert (report.references, report.blobs, report.failed) == (6, 3, 3)
