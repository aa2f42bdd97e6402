"""Rows that an engine reserves ahead: a store costs one commit, and what nobody needed is given back."""

import asyncio
from datetime import timedelta

import bdr
from bdr import BinaryDataLifecycleManager, UploadConfig
from tests.fixtures.engines import Connect
from tests.guarantees import violations
from tests.lifecycle.support import blob_states, change, make_due, rows
from tests.manager.support import statements_of
from tests.storage.helpers import until

AHEAD = 5
PENDING = "SELECT count(*) FROM bdr.blob WHERE state = 'pending'"


async def reserving(connect: Connect) -> BinaryDataLifecycleManager:
    return await connect(upload=UploadConfig(reserve_ahead=AHEAD, lease=timedelta(minutes=10)))


async def test_a_store_that_finds_a_row_reserved_costs_one_statement(connect: Connect) -> None:
    binary = await reserving(connect)
    await binary.store_data(b"first")
    assert await rows(binary, PENDING) == [(AHEAD,)]
    sent = statements_of(binary, "bdr.blob")
    for number in range(AHEAD):
        await binary.store_data(b"%d" % number)
    assert len(sent) == AHEAD
    await binary.store_data(b"last")
    assert len(sent) == AHEAD + 2
    assert await rows(binary, PENDING) == [(AHEAD,)]


async def test_many_at_once_take_along_as_many_as_they_are(connect: Connect) -> None:
    binary = await reserving(connect)
    made = await asyncio.gather(*(binary.store_data(b"%d" % number) for number in range(50)))
    assert len({one.file_key for one in made}) == 50
    assert 0 < (await rows(binary, PENDING))[0][0] <= 50 + AHEAD
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_those_who_find_rows_ready_or_go_away_keep_nobody_from_getting_more(connect: Connect) -> None:
    binary = await reserving(connect)
    reserve = binary.uploads.reserving.reserve
    for _ in range(3):
        waiting = [asyncio.create_task(reserve()) for _ in range(40)]
        await asyncio.sleep(0)
        for one in waiting[::2]:
            one.cancel()
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting[1::2])
            await asyncio.gather(*(reserve() for _ in range(40)))


async def test_what_is_left_is_given_back_when_the_engine_leaves(connect: Connect, database_url: str) -> None:
    watcher = await connect()
    storage = bdr.BinaryStorageConfig(storage_type="memory")
    async with bdr.connect(database_url, storage) as binary:
        await binary.store_data(b"one")
        assert (await rows(watcher, PENDING))[0][0] > 0
    assert await rows(watcher, PENDING) == [(0,)]


async def test_a_row_that_is_half_as_old_as_its_deadline_is_given_back_and_not_used(connect: Connect) -> None:
    binary = await reserving(connect)
    await binary.store_data(b"first")
    reserved = {blob_id for (blob_id,) in await rows(binary, "SELECT blob_id FROM bdr.blob WHERE state = 'pending'")}
    # Nothing is waited for: they are made as old as they will be.
    reserving_ = binary.uploads.reserving
    for one in reserving_._ready:
        object.__setattr__(one, "since", one.since - 301)
    key = (await binary.store_data(b"second")).file_key
    assert (await binary.get_details(key)).blob_id not in reserved
    await reserving_.give_back_old()

    async def given_back() -> bool:
        # What goes on in the background may have been first, and still be about it.
        left = {blob_id for (blob_id,) in await rows(binary, "SELECT blob_id FROM bdr.blob WHERE state = 'pending'")}
        return not left & reserved and len(left) == AHEAD

    await until(given_back)


async def test_a_row_that_a_reaper_has_claimed_is_not_given_back_but_reaped(connect: Connect) -> None:
    binary = await reserving(connect)
    await binary.store_data(b"first")
    await make_due(binary)
    await change(binary, "UPDATE bdr.blob SET state = 'deleting' WHERE state = 'pending'")
    await binary.uploads.reserving.close()
    assert await blob_states(binary) == ["deleting"] * AHEAD + ["live"]
    await binary.reap()
    assert await blob_states(binary) == ["live"]


async def test_rows_of_an_engine_that_was_killed_are_reaped_when_their_deadline_has_passed(connect: Connect) -> None:
    lost, other = await reserving(connect), await connect()
    key = (await lost.store_data(b"first")).file_key
    lost.uploads.reserving._ready.clear()
    assert (await other.reap()).trouble is None
    assert len(await blob_states(other)) == AHEAD + 1
    await make_due(other)
    await other.reap()
    await make_due(other)
    await other.reap()
    assert await blob_states(other) == ["live"]
    assert await other.get_data(key) == b"first"
