"""Statistics: the totals plus the records that are still there, whatever is pruned, by whom and when."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import bdr
from bdr import BasicStats, BinaryDataLifecycleManager
from tests.fixtures.engines import Connect
from tests.lifecycle.conftest import caller
from tests.lifecycle.support import HeldSource, change, rows, until_waiting
from tests.manager.support import NEVER

__all__ = ["caller"]

TOTALS = "SELECT sum(operations)::int, sum(bytes)::int FROM bdr.operation_total"
SIZES = "SELECT processed_bytes FROM bdr.operation WHERE operation_type <> 'reap_pass' ORDER BY 1"
RECORDS = "SELECT count(*)::int FROM bdr.operation"
# One record a second back in time, the first one the newest; some that failed, two engines, two days.
FILL = """
    INSERT INTO bdr.operation (operation_id, operation_type, instance_id, processed_bytes, status, error,
        started_at, updated_at, finished_at)
    SELECT gen_random_uuid(), CASE n % 3 WHEN 0 THEN 'store' ELSE 'retrieve' END,
        CASE n % 2 WHEN 0 THEN CAST(:one AS uuid) ELSE CAST(:other AS uuid) END, n,
        CASE n % 5 WHEN 0 THEN 'failed' ELSE 'succeeded' END, CASE n % 5 WHEN 0 THEN 'why' END,
        moment, moment, moment
    FROM generate_series(1, :count) AS n, LATERAL (SELECT now() - n * CAST(:apart AS interval)) AS m (moment)
"""
ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


async def fill(binary: BinaryDataLifecycleManager, count: int, apart: timedelta = timedelta(seconds=1)) -> None:
    await change(binary, FILL, one=ONE, other=OTHER, count=count, apart=apart)


async def sizes(binary: BinaryDataLifecycleManager) -> list[int]:
    """The sizes of the records still there; each of the filled ones has its own, the newest 1."""
    return [size for (size,) in await rows(binary, SIZES)]


async def test_statistics_count_each_operation_by_how_it_ended(connect: Connect) -> None:
    binary = await connect(access=NEVER)
    assert await binary.get_stats() == BasicStats()
    key = (await binary.store_data(b"hello")).file_key
    await binary.get_data(key)
    await binary.get_data(key)
    with pytest.raises(TypeError):
        await binary.store_stream(wrong_on_the_way())
    source = HeldSource()
    storing = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    storing.cancel()
    await asyncio.wait([storing])
    await binary.delete_data(key)
    assert await binary.get_stats() == BasicStats(
        total_operations=5, successful_operations=3, failed_operations=1, cancelled_operations=1,
        total_bytes_processed=5 + 5 + 0 + 10_000 + 5,
    )  # fmt: skip


async def wrong_on_the_way() -> AsyncIterator[bytes]:
    yield b""
    raise TypeError("wrong")


async def test_pruning_keeps_the_newest_and_changes_no_statistics(binary: BinaryDataLifecycleManager) -> None:
    await fill(binary, 100)
    before = await binary.get_stats()
    assert before == BasicStats(
        total_operations=100, successful_operations=80, failed_operations=20, total_bytes_processed=5050
    )
    assert await binary.cleanup_completed_operations(30) == 70
    assert await sizes(binary) == list(range(1, 31))
    assert await rows(binary, TOTALS) == [(70, sum(range(31, 101)))]
    assert await binary.get_stats() == before
    assert await binary.cleanup_completed_operations(30) == 0
    assert await binary.cleanup_completed_operations(10**6) == 0
    assert await binary.cleanup_completed_operations(0) == 30
    assert (await rows(binary, RECORDS), await binary.get_stats()) == ([(0,)], before)
    assert await rows(binary, "SELECT DISTINCT operation_type, status FROM bdr.operation_total ORDER BY 1, 2") == [
        ("retrieve", "failed"), ("retrieve", "succeeded"), ("store", "failed"), ("store", "succeeded"),
    ]  # fmt: skip


@pytest.mark.parametrize("keep", [-1, -(2**70)])
async def test_less_than_none_cannot_be_kept(binary: BinaryDataLifecycleManager, keep: int) -> None:
    with pytest.raises(bdr.InvalidArgument, match="must not be negative"):
        await binary.cleanup_completed_operations(keep)


async def test_records_of_one_moment_are_told_apart(binary: BinaryDataLifecycleManager) -> None:
    await fill(binary, 100, timedelta(0))
    assert await binary.cleanup_completed_operations(30) == 70
    assert await rows(binary, RECORDS) == [(30,)]


async def test_what_runs_is_neither_pruned_nor_counted_among_the_newest(binary: BinaryDataLifecycleManager) -> None:
    await fill(binary, 10)
    await change(binary, "UPDATE bdr.operation SET status = 'running', finished_at = NULL WHERE processed_bytes > 8")
    assert await binary.cleanup_completed_operations(5) == 3
    assert await sizes(binary) == [1, 2, 3, 4, 5, 9, 10]
    assert (await binary.get_stats()).running_operations == 2


async def test_the_reaper_prunes_by_age_into_the_day_on_which_each_began(connect: Connect) -> None:
    binary = await connect(operations=bdr.OperationsConfig(retention=timedelta(hours=50)))
    await fill(binary, 100, timedelta(hours=1))
    before = await binary.get_stats()
    began = "SELECT DISTINCT date(started_at AT TIME ZONE 'UTC') FROM bdr.operation WHERE processed_bytes >= 50"
    days = await rows(binary, f"{began} ORDER BY 1")
    assert (await binary.reap()).pruned == 51
    assert await sizes(binary) == list(range(1, 50))
    assert await rows(binary, "SELECT DISTINCT day FROM bdr.operation_total ORDER BY day") == days
    assert (await binary.get_stats()).total_bytes_processed == before.total_bytes_processed
    forever = await connect(operations=bdr.OperationsConfig(retention=None))
    assert (await forever.reap()).pruned == 0


async def test_engines_that_prune_at_once_while_others_write_count_everything_once(connect: Connect) -> None:
    engines = [await connect(access=NEVER) for _ in range(3)]
    await fill(engines[0], 3000)

    async def work(binary: BinaryDataLifecycleManager) -> None:
        for _ in range(10):
            await binary.store_data(b"x")

    async def prune(binary: BinaryDataLifecycleManager) -> int:
        return sum([await binary.cleanup_completed_operations(20) for _ in range(5)])

    writing = asyncio.create_task(work(engines[0]))
    pruned = await asyncio.gather(*(prune(binary) for binary in engines))
    await writing
    assert sum(pruned) + (await rows(engines[0], RECORDS))[0][0] == 3010
    stats = await engines[1].get_stats()
    assert (stats.total_operations, stats.total_bytes_processed) == (3010, 3000 * 3001 // 2 + 10)
    assert stats.failed_operations == 600


async def test_records_that_somebody_holds_locked_are_left_for_the_next_time(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    await fill(binary, 10)
    async with caller.begin() as connection:
        await connection.execute(text("SELECT FROM bdr.operation WHERE processed_bytes IN (9, 10) FOR UPDATE"))
        assert await binary.cleanup_completed_operations(5) == 3
    assert await binary.cleanup_completed_operations(5) == 2
    assert await sizes(binary) == [1, 2, 3, 4, 5]


async def test_a_prune_that_waits_for_another_one_s_total_adds_to_it(
    binary: BinaryDataLifecycleManager, caller: AsyncEngine
) -> None:
    await fill(binary, 2, timedelta(0))
    before = await binary.get_stats()
    await binary.cleanup_completed_operations(0)
    await fill(binary, 2, timedelta(0))
    async with caller.begin() as connection:
        await connection.execute(text("SELECT FROM bdr.operation_total FOR UPDATE"))
        pruning = asyncio.create_task(binary.cleanup_completed_operations(0))
        await until_waiting(binary)
        await connection.execute(text("UPDATE bdr.operation_total SET operations = operations + 1"))
    assert await pruning == 2
    stats = await binary.get_stats()
    assert stats.total_bytes_processed == 2 * before.total_bytes_processed
    assert stats.total_operations == 4 + (await rows(binary, "SELECT count(*)::int FROM bdr.operation_total"))[0][0]


async def test_more_than_one_batch_is_pruned_and_what_comes_meanwhile_does_not_keep_it_going(
    binary: BinaryDataLifecycleManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdr.manager.operations._PRUNE_BATCH", 10)
    await fill(binary, 35)
    assert await binary.cleanup_completed_operations(3) == 32
    assert await sizes(binary) == [1, 2, 3]
