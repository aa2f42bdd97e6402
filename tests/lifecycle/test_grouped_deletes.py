"""What many callers delete at once goes in groups, and ends for each as if it had been alone."""

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import pytest

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig, ReaperConfig
from bdr.errors import OutcomeUnknown
from bdr.manager import clock
from tests.fixtures.engines import Connect
from tests.guarantees import objects_in, violations
from tests.lifecycle.gate import CommitGate, closed_gate
from tests.lifecycle.support import blob_states, make_due, unmounted
from tests.manager.support import statements_of
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
Task = asyncio.Task[None]

FINISH = "DELETE FROM bdr.blob"


async def stored(binary: Binary, number: int) -> list[str]:
    return [(await binary.store_data(b"%d" % one)).file_key for one in range(number)]


def deleting(binary: Binary, *keys: str) -> list[Task]:
    return [asyncio.create_task(binary.delete_data(key)) for key in keys]


def gate_at_finish(database_url: str) -> AbstractAsyncContextManager[CommitGate]:
    """Sweeps have deleted their objects, and stop before their rows are gone."""
    return closed_gate(database_url, "DELETE", "blob")


async def until_waiting_for_a_sweep(binary: Binary, number: int) -> None:
    """Wait until so many objects wait for the sweep that is under way."""

    async def all_wait() -> bool:
        return len(binary.sweeping._groups["main"]._gathered) == number

    await until(all_wait)


# The sweep


async def test_deletes_at_once_share_a_sweep(binary: Binary, database_url: str) -> None:
    first, *others = await stored(binary, 11)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, first)
        await gate.reached()
        tasks += deleting(binary, *others)
        await until_waiting_for_a_sweep(binary, 10)
        sent = statements_of(binary, FINISH)
        await gate.open()
        await asyncio.gather(*tasks)
    assert len(sent) == 1
    assert await blob_states(binary) == []
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_a_caller_that_is_cancelled_takes_the_sweep_away_from_nobody(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 4)
    async with gate_at_finish(database_url) as gate:
        first = deleting(binary, keys[0])
        await gate.reached()
        tasks = deleting(binary, *keys[1:])
        await until_waiting_for_a_sweep(binary, 3)
        early, late, last = tasks
        early.cancel()
        await gate.let_through()
        await gate.reached()
        late.cancel()
        ended = await asyncio.gather(early, late, return_exceptions=True)
        assert await blob_states(binary) == ["deleting"] * 3
        assert not last.done()
        await gate.open()
        await asyncio.gather(*first, last)
    # Its references were gone before either was cancelled.
    assert [(type(one), getattr(one, "keys", None)) for one in ended] == [
        (OutcomeUnknown, (keys[1],)),
        (OutcomeUnknown, (keys[2],)),
    ]
    # What was cancelled before its sweep began is left to the reaper.
    assert await blob_states(binary) == ["deleting"]
    await make_due(binary)
    assert (await binary.reap()).blobs == 1


async def test_what_has_waited_for_half_of_its_lease_is_left_to_the_reaper(
    connect: Connect, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    lease = timedelta(seconds=2)
    binary = await connect(reaper=ReaperConfig(lease=lease))
    keys = await stored(binary, 3)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, keys[0])
        await gate.reached()
        tasks += deleting(binary, keys[1])
        await until_waiting_for_a_sweep(binary, 1)
        begun = clock.seconds()

        async def half_is_over() -> bool:
            return clock.seconds() - begun > lease.total_seconds() / 2

        await until(half_is_over)
        tasks += deleting(binary, keys[2])
        await until_waiting_for_a_sweep(binary, 2)
        await gate.open()
        await asyncio.gather(*tasks)
    assert "its turn came too late" in caplog.text
    assert await blob_states(binary) == ["deleting"]
    await make_due(binary)
    assert (await binary.reap()).blobs == 1
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_a_sweep_that_fails_is_left_to_the_reaper_and_fails_no_caller(
    binary: Binary, database_url: str, fs_config: BinaryStorageConfig
) -> None:
    keys = await stored(binary, 4)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, keys[0])
        await gate.reached()
        tasks += deleting(binary, *keys[1:])
        await until_waiting_for_a_sweep(binary, 3)
        with unmounted(fs_config):
            await gate.open()
            await asyncio.gather(*tasks)
    assert await blob_states(binary) == ["deleting"] * 3
    await make_due(binary)
    assert (await binary.reap()).blobs == 3


async def test_a_close_waits_for_the_sweeps(binary: Binary, database_url: str) -> None:
    keys = await stored(binary, 3)
    async with gate_at_finish(database_url) as gate:
        tasks = deleting(binary, keys[0])
        await gate.reached()
        tasks += deleting(binary, *keys[1:])
        await until_waiting_for_a_sweep(binary, 2)
        closing = asyncio.create_task(binary.sweeping.close())
        await asyncio.sleep(0)
        assert not closing.done()
        await gate.open()
        await closing
        assert await blob_states(binary) == []
    await asyncio.gather(*tasks)
