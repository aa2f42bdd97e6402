import logging
import uuid
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.progress import BasicStats, OperationProgress, OperationStatus, ProgressMeter

ID = uuid.UUID(int=7)
THEN = datetime(2024, 2, 29, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(total: int | None, done: int, seconds: float, status: str = "running") -> OperationProgress:
    return OperationProgress(
        operation_id=ID, operation_type="store", total_bytes=total, processed_bytes=done, status=status,
        started_at=THEN, elapsed=timedelta(seconds=seconds),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "percentage", "remaining"),
    [
        (progress(200, 50, 2), 25.0, timedelta(seconds=6)),
        (progress(200, 0, 2), 0.0, None),
        (progress(200, 50, 0), 25.0, None),
        (progress(200, 200, 2), 100.0, timedelta(0)),
        (progress(200, 300, 2), 100.0, timedelta(0)),
        (progress(200, 200, 2, "succeeded"), 100.0, None),
        (progress(200, 50, 2, "failed"), 25.0, None),
        (progress(200, 50, 2, "cancelled"), 25.0, None),
        (progress(None, 50, 2), None, None),
        (progress(None, 50, 2, "succeeded"), None, None),
        (progress(0, 0, 2), 0.0, None),
        (progress(0, 0, 2, "succeeded"), 100.0, None),
        (progress(2**63 - 1, 1, 1), pytest.approx(0), None),
    ],
)
def test_what_can_be_said(shown: OperationProgress, percentage: float | None, remaining: timedelta | None) -> None:
    assert shown.completion_percentage == percentage
    assert shown.estimated_remaining_time == remaining
    assert shown.is_completed == (shown.status != "running")
    assert shown.elapsed_time == shown.elapsed


def test_the_rate_is_that_of_the_whole_time() -> None:
    assert progress(None, 50, 2).bytes_per_second == 25.0
    assert progress(None, 50, 0).bytes_per_second is None


SIZES = st.integers(0, 2**63 - 1)


@given(st.none() | SIZES, SIZES, st.floats(0, 1e9), st.sampled_from(OperationStatus))
def test_nothing_makes_it_fail(total: int | None, done: int, seconds: float, status: OperationStatus) -> None:
    shown = progress(total, done, seconds, status)
    assert shown.completion_percentage is None or 0 <= shown.completion_percentage <= 100
    assert shown.estimated_remaining_time is None or shown.estimated_remaining_time >= timedelta(0)


def test_a_meter_measures_from_its_start_to_its_end() -> None:
    clock = Clock()
    meter = ProgressMeter(ID, "retrieve", clock=clock)
    clock.now += 50
    meter.start(400, started_at=THEN)
    clock.now += 3
    meter.advance(60)
    meter.advance(40)
    clock.now += 1
    assert meter.snapshot() == OperationProgress(
        operation_id=ID, operation_type="retrieve", total_bytes=400, processed_bytes=100, started_at=THEN,
        elapsed=timedelta(seconds=4),
    )  # fmt: skip
    assert meter.snapshot().estimated_remaining_time == timedelta(seconds=12)
    meter.finish()
    clock.now += 100
    assert meter.snapshot().elapsed == timedelta(seconds=4)
    assert meter.snapshot().status == "succeeded"


def test_a_meter_without_a_given_time_shows_this_machine_s() -> None:
    before = datetime.now(UTC)
    started = ProgressMeter(ID, "store").snapshot().started_at
    assert before <= started <= datetime.now(UTC)


def test_only_the_first_end_counts() -> None:
    seen: list[OperationProgress] = []
    meter = ProgressMeter(ID, "store", on_progress=seen.append)
    meter.finish(OperationStatus.FAILED, "the disk is full")
    meter.finish(OperationStatus.SUCCEEDED)
    assert [(last.status, last.error) for last in seen] == [("failed", "the disk is full")]


def test_reports_come_at_most_ten_times_a_second_and_once_at_the_end() -> None:
    clock, seen = Clock(), list[OperationProgress]()
    meter = ProgressMeter(ID, "store", on_progress=seen.append, clock=clock)
    meter.start(1000)
    for _ in range(1000):
        meter.advance(1)
        clock.now += 0.001
    assert 9 <= len(seen) <= 10
    assert all(later.elapsed - one.elapsed >= timedelta(seconds=0.0999) for one, later in pairwise(seen))
    meter.finish()
    assert (seen[-1].status, seen[-1].processed_bytes, seen[-1].is_completed) == ("succeeded", 1000, True)
    assert [shown.is_completed for shown in seen].count(True) == 1


def test_whoever_watches_cannot_break_what_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[OperationProgress] = []

    def watch(shown: OperationProgress) -> None:
        calls.append(shown)
        raise RuntimeError("the screen is gone")

    clock = Clock()
    meter = ProgressMeter(ID, "store", on_progress=watch, clock=clock)
    with caplog.at_level(logging.ERROR, "bdr.progress"):
        for _ in range(5):
            clock.now += 1
            meter.advance(1)
        meter.finish()
    assert len(calls) == 1
    assert [record.exc_text is not None or record.exc_info is not None for record in caplog.records] == [True]
    assert meter.snapshot().processed_bytes == 5
    assert meter.snapshot().status == "succeeded"


def test_stats_add_up() -> None:
    first = BasicStats(total_operations=6, successful_operations=3, failed_operations=1, total_bytes_processed=10,
                       cancelled_operations=1, running_operations=1)  # fmt: skip
    assert first + BasicStats() == first
    assert astuple(first + first) == tuple(2 * number for number in astuple(first))
    assert sum([first, first, first], BasicStats()).total_bytes_processed == 30
