"""When passes run: at an interval with jitter, one at a time, through outages, and how they are stopped."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED

import bdr
from bdr import BinaryDataLifecycleManager, BinaryStorageConfig, LifecycleCleanupConfig, ReaperConfig
from bdr.catalog import migrate
from bdr.errors import CatalogUnavailable, InstanceClosed
from bdr.reaper import ReapReport
from bdr.reaper.reap import Stopping, reap
from bdr.reaper.schedule import ReaperSchedule
from tests.fixtures.engines import SOON, Connect
from tests.fixtures.postgres import PostgresServer
from tests.guarantees import objects_in
from tests.lifecycle.support import HeldDelete, blob_states, make_due
from tests.reaper.support import HOUR, expired, keys_left
from tests.storage.helpers import until

OFTEN = timedelta(milliseconds=10)
Run = Callable[[Stopping], Awaitable[ReapReport]]
MakeSchedule = Callable[..., ReaperSchedule]


def passes_of(binary: BinaryDataLifecycleManager) -> Callable[[Stopping], Awaitable[ReapReport]]:
    return lambda stopping: reap(binary.engine, binary.operations, stopping=stopping)


@pytest.fixture
async def schedule_of() -> AsyncIterator[MakeSchedule]:
    """A factory of schedules that are stopped when the test is over."""
    made: list[ReaperSchedule] = []

    def make(run: Run, *, interval: timedelta = OFTEN, **settings: timedelta) -> ReaperSchedule:
        defaults = {"backoff": HOUR, "backoff_max": 3 * HOUR, "drain_timeout": HOUR}
        made.append(ReaperSchedule(run, interval=interval, **defaults | settings))
        return made[-1]

    yield make
    for one in made:
        await one.stop()


def job_of(schedule: ReaperSchedule) -> Any:
    return schedule._scheduler.get_job("reap")


def has_stopped(schedule: ReaperSchedule) -> bool:
    return not schedule.is_running and not schedule._scheduler.running


def troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What anybody warned of, APScheduler too."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Passes:
    """Passes that a test lets end, or fail, one by one."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.results: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self.under_way = 0
        self.most = 0

    async def __call__(self, _stopping: Stopping) -> ReapReport:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.release()
        try:
            if (error := await self.results.get()) is not None:
                raise error
        finally:
            self.under_way -= 1
        return ReapReport()


async def test_the_first_pass_comes_soon_and_each_is_jittered(schedule_of: MakeSchedule) -> None:
    schedule = schedule_of(Passes(), interval=timedelta(seconds=50))
    before = datetime.now(UTC)
    schedule.start()
    job = job_of(schedule)
    assert timedelta(0) <= job.next_run_time - before < timedelta(seconds=6)
    assert (job.trigger.interval, job.trigger.jitter) == (timedelta(seconds=50), 5)
    assert (job.max_instances, job.coalesce, job.misfire_grace_time) == (1, True, None)
    starts = {job.trigger.get_next_fire_time(before, before) - before for _ in range(50)}
    assert timedelta(seconds=50) <= min(starts) < max(starts) <= timedelta(seconds=55)


async def test_passes_never_overlap_however_long_one_takes_and_nobody_warns_of_that(
    schedule_of: MakeSchedule, caplog: pytest.LogCaptureFixture
) -> None:
    passes = Passes()
    schedule = schedule_of(passes, backoff=OFTEN)
    schedule.start()
    for result in (None, None, CatalogUnavailable("the database is away"), None):
        await passes.begun.acquire()
        # Long enough for the next ones to come due.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(passes.begun.acquire(), 5 * OFTEN.total_seconds())
        passes.results.put_nowait(result)
    await passes.begun.acquire()
    passes.results.put_nowait(None)
    assert passes.most == 1
    assert [text.partition(" is tried")[0] for text in troubles(caplog)] == ["A reap failed and"]


async def test_the_back_off_doubles_up_to_its_maximum_and_begins_anew_after_a_success(
    schedule_of: MakeSchedule, caplog: pytest.LogCaptureFixture
) -> None:
    passes = Passes()
    schedule = schedule_of(passes, interval=7 * HOUR)
    schedule.start()
    ended = asyncio.Semaphore(0)
    schedule._scheduler.add_listener(lambda _: ended.release(), EVENT_JOB_EXECUTED)

    async def run_one(result: BaseException | None) -> timedelta:
        schedule._scheduler.modify_job("reap", next_run_time=datetime.now(UTC))
        await passes.begun.acquire()
        passes.results.put_nowait(result)
        await ended.acquire()
        wait: timedelta = job_of(schedule).next_run_time - datetime.now(UTC)
        return wait

    away = CatalogUnavailable("the database is away")
    for hours in (1, 2, 3, 3):
        assert hours * HOUR * 0.74 < await run_one(away) <= hours * HOUR
    assert 6.9 * HOUR < await run_one(None) < 7.8 * HOUR
    assert HOUR * 0.74 < await run_one(away) <= HOUR
    assert "A reap failed and is tried again in 2:00:00: the database is away" in caplog.text


async def test_an_unexpected_error_is_logged_and_the_next_pass_comes(
    schedule_of: MakeSchedule, caplog: pytest.LogCaptureFixture
) -> None:
    passes = Passes()
    schedule_of(passes).start()
    await passes.begun.acquire()
    passes.results.put_nowait(ZeroDivisionError("a mistake"))
    await passes.begun.acquire()
    passes.results.put_nowait(None)
    assert "a mistake" in caplog.text


async def test_it_goes_on_by_itself_after_an_outage_of_the_database(
    private_postgres: PostgresServer, fs_config: BinaryStorageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    url = private_postgres.url(await private_postgres.create_database())
    await migrate.upgrade(url)
    often = LifecycleCleanupConfig(cleanup_interval=SOON)
    reaper = ReaperConfig(backoff_initial=OFTEN, backoff_max=SOON)
    async with bdr.connect(url, storage=fs_config, lifecycle=often, reaper=reaper) as binary:
        await binary.start_cleanup_task()
        await expired(binary, 2)
        await until(partial(is_empty, binary))
        private_postgres.stop("immediate")
        caplog.clear()
        await until(partial(says, caplog, "A reap failed and is tried again"))
        private_postgres.start()
        await expired(binary, 2)
        await until(partial(is_empty, binary))


async def is_empty(binary: BinaryDataLifecycleManager) -> bool:
    return await blob_states(binary) == []


async def says(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return what in caplog.text


async def test_a_pass_under_way_ends_after_its_batch(
    connect: Connect, schedule_of: MakeSchedule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect(reaper=ReaperConfig(batch_size=3))
    await expired(binary, 12)
    held = HeldDelete(monkeypatch)
    reports: list[ReapReport] = []

    async def run(stopping: Stopping) -> ReapReport:
        reports.append(await reap(binary.engine, binary.operations, stopping=stopping))
        return reports[-1]

    schedule = schedule_of(run)
    schedule.start()
    await held.begun.wait()
    stopping = asyncio.create_task(schedule.stop())
    await asyncio.wait({stopping}, timeout=SOON.total_seconds())
    assert not stopping.done()
    held.go_on.set()
    await stopping
    assert has_stopped(schedule)
    assert [(report.references, report.blobs) for report in reports] == [(9, 9)]
    assert await blob_states(binary) == ["live"] * 3
    assert troubles(caplog) == []
    assert (await binary.reap()).blobs == 3


async def test_a_pass_that_does_not_end_in_time_is_cancelled_and_what_it_claimed_is_reaped_later(
    connect: Connect, schedule_of: MakeSchedule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect()
    await expired(binary, 4)
    held = HeldDelete(monkeypatch)
    schedule = schedule_of(passes_of(binary), drain_timeout=OFTEN)
    schedule.start()
    await held.begun.wait()
    await schedule.stop()
    assert has_stopped(schedule)
    assert [text.partition(" within ")[0] for text in troubles(caplog)] == ["A reap did not end"]
    monkeypatch.undo()
    assert (await binary.reap()).is_empty
    await make_due(binary)
    assert (await binary.reap()).blobs == 4
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_starting_and_stopping_at_any_moment_leaves_nothing_behind(
    connect: Connect, schedule_of: MakeSchedule, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect()
    await expired(binary, 2)
    tasks = len(asyncio.all_tasks())
    for turns in range(50):
        schedule = schedule_of(passes_of(binary), interval=timedelta(0))
        await schedule.stop()
        schedule = schedule_of(passes_of(binary), interval=OFTEN / 10)
        schedule.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(schedule.stop(), schedule.stop())
        assert has_stopped(schedule)
    assert len(asyncio.all_tasks()) == tasks
    assert troubles(caplog) == []
    while not (await binary.reap()).is_empty:
        pass
    assert await keys_left(binary) == set()


async def test_the_cleanup_task_runs_once_and_until_the_connection_closes(
    database_url: str, fs_config: BinaryStorageConfig
) -> None:
    often = LifecycleCleanupConfig(cleanup_interval=SOON)
    async with bdr.connect(database_url, storage=fs_config, lifecycle=often) as binary:
        await binary.start_cleanup_task()
        schedule = binary._schedule
        assert schedule is not None
        assert schedule.is_running
        await binary.start_cleanup_task()
        assert binary._schedule is schedule
        await expired(binary)
        await until(partial(is_empty, binary))
    assert has_stopped(schedule)
    with pytest.raises(InstanceClosed):
        await binary.start_cleanup_task()


async def test_without_auto_cleanup_no_task_is_started(connect: Connect) -> None:
    binary = await connect(lifecycle=LifecycleCleanupConfig(auto_cleanup=False))
    await binary.start_cleanup_task()
    assert binary._schedule is None
    await expired(binary)
    assert (await binary.reap()).references == 1


async def test_the_reaper_of_an_instance_that_was_declared_dead_stops_and_says_so(
    connect: Connect, schedule_of: MakeSchedule, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect()
    schedule = schedule_of(passes_of(binary))
    schedule.start()
    binary.engine.close("This engine was declared dead.")
    await until(partial(says, caplog, "The reaper stops: This engine was declared dead."))
    assert not schedule.is_running
    assert job_of(schedule) is None
