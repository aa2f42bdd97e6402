"""What many callers store at once is published in groups, and ends for each as if it had been alone."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import BinaryDataLifecycleManager, BinaryDataReference, Busy, DatabaseConfig, OperationError
from bdr.errors import OutcomeUnknown
from tests.fixtures.engines import Connect
from tests.guarantees import violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import blob_states, change, keys_of, rows, until_quiet, until_waiting
from tests.manager.support import statements_of
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
Storing = asyncio.Task[BinaryDataReference]

OURS = "SELECT blob_id FROM bdr.blob WHERE state = 'pending' ORDER BY blob_id"
LOCK = "SELECT FROM bdr.blob WHERE blob_id = :blob_id FOR UPDATE"
REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
    CREATE TRIGGER refuse BEFORE INSERT ON bdr.binary_data_reference
    FOR EACH ROW WHEN (NEW.file_size = 7) EXECUTE FUNCTION refuse();
"""


async def gathered(binary: Binary, *data: bytes) -> list[Storing]:
    """Stores that have written their objects and wait for the group before theirs."""
    tasks = [asyncio.create_task(binary.store_data(one)) for one in data]
    groups = binary.uploads.publishing._groups

    async def all_wait() -> bool:
        return len(groups._gathered) == len(data)

    await until(all_wait)
    return tasks


async def test_stores_at_once_share_a_commit(binary: Binary) -> None:
    sent = statements_of(binary, "INSERT INTO bdr.binary_data_reference")
    made = await asyncio.gather(*(binary.store_data(b"%d" % number) for number in range(60)))
    assert len(sent) < 20
    assert await asyncio.gather(*(binary.get_data(one.file_key) for one in made)) == [b"%d" % n for n in range(60)]


async def test_one_that_the_server_refuses_does_not_fail_the_others(binary: Binary, database_url: str) -> None:
    for statement in REFUSE.split(";\n    CREATE TRIGGER"):
        await change(binary, statement if "FUNCTION refuse() RETURNS" in statement else f"CREATE TRIGGER{statement}")
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.store_data(b"first"))
        await gate.reached()
        tasks = await gathered(binary, b"one", b"refused", b"three")
        await gate.open()
        ended = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [type(one) for one in ended] == [*[BinaryDataReference] * 2, OperationError, BinaryDataReference]
    assert await blob_states(binary) == ["deleting", "live", "live", "live"]


async def test_one_that_was_claimed_fails_by_itself(binary: Binary, database_url: str) -> None:
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.store_data(b"first"))
        await gate.reached()
        tasks = await gathered(binary, b"one", b"two", b"three")
        claimed = (await rows(binary, OURS))[1][0]
        await change(binary, "UPDATE bdr.blob SET state = 'deleting' WHERE blob_id = :claimed", claimed=claimed)
        await gate.open()
        ended = await asyncio.gather(first, *tasks, return_exceptions=True)
    failed = [one for one in ended if isinstance(one, Exception)]
    assert [type(one) for one in failed] == [OperationError]
    assert "longer than its deadline" in str(failed[0])
    assert len(await keys_of(binary)) == 3


async def test_one_whose_row_somebody_has_locked_delays_nobody_else(
    binary: Binary, caller: AsyncEngine, database_url: str
) -> None:
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.store_data(b"first"))
        await gate.reached()
        tasks = await gathered(binary, b"one", b"two", b"three")
        locked = (await rows(binary, OURS))[1][0]
        async with caller.begin() as own:
            await own.execute(text(LOCK), {"blob_id": locked})
            await gate.open()
            done, waiting = await asyncio.wait([first, *tasks], return_when=asyncio.FIRST_COMPLETED)
            await until_waiting(binary)
            # Whoever comes while it waits is not kept waiting either.
            await binary.store_data(b"later")

            async def others_are_done() -> bool:
                return sum(task.done() for task in (first, *tasks)) == 3

            await until(others_are_done)
    assert len({one.file_key for one in await asyncio.gather(first, *tasks)}) == 4
    assert done
    assert waiting


async def test_many_whose_rows_are_locked_leave_connections_for_the_others(
    connect: Connect, caller: AsyncEngine, database_url: str
) -> None:
    binary = await connect(database=DatabaseConfig(pool_size=2, pool_timeout=timedelta(seconds=5)))
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.store_data(b"first"))
        await gate.reached()
        tasks = await gathered(binary, b"one", b"two", b"three")
        async with caller.begin() as own:
            await own.execute(text("SELECT FROM bdr.blob FOR UPDATE SKIP LOCKED"))
            await gate.open()
            await until_waiting(binary)
            assert await binary.register_reference((await first).file_key) == 2
    assert len({one.file_key for one in await asyncio.gather(*tasks)}) == 3


async def test_a_lock_that_is_not_let_go_of_in_time_is_busy_and_stores_nothing(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(database=DatabaseConfig(lock_timeout=timedelta(milliseconds=200)))
    async with caller.begin() as own:
        await own.execute(text("LOCK TABLE bdr.binary_data_reference IN EXCLUSIVE MODE"))
        ended = await asyncio.gather(*(binary.store_data(b"x") for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in ended] == [Busy] * 3
    assert len(set(map(id, ended))) == 3
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_a_caller_that_is_cancelled_takes_the_group_away_from_nobody(binary: Binary, database_url: str) -> None:
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.store_data(b"first"))
        await gate.reached()
        second, third = await gathered(binary, b"second", b"third")
        second.cancel()
        first.cancel()
        await asyncio.sleep(0)
        await gate.open()
        # Its publish was sent: it is there, and says so with its key.
        with pytest.raises(OutcomeUnknown) as unknown:
            await first
        with pytest.raises(asyncio.CancelledError):
            await second
        kept = await third
    assert unknown.value.cancelled
    assert await keys_of(binary) == {*unknown.value.keys, kept.file_key}
    assert await blob_states(binary) == ["deleting", "live", "live"]


@pytest.mark.parametrize("happens", [True, False])
async def test_a_lost_answer_is_found_out_for_each_of_a_group(
    binary: Binary, connect_through: ConnectThrough, database_url: str, happens: bool
) -> None:
    far, proxy = await connect_through()
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(far.store_data(b"first"))
        await gate.reached()
        tasks = await gathered(far, b"one", b"two", b"three")
        await gate.let_through()
        await gate.reached()
        if happens:
            proxy.cut()
            await gate.open()
        else:
            await gate.end_sessions()
            await gate.open()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    await until_quiet(binary)
    # Each asks the catalog what became of its own, and gives it up, or has it.
    kept = {one.file_key for one in ended if isinstance(one, BinaryDataReference)}
    assert len(kept) == (3 if happens else 0), ended
    assert await keys_of(binary) == kept | {(await first).file_key}
    assert len({id(one) for one in ended}) == 3


async def test_a_close_waits_for_what_was_asked_for_before(binary: Binary, database_url: str) -> None:
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.store_data(b"first"))
        await gate.reached()
        tasks = await gathered(binary, b"second", b"third")
        closing = asyncio.create_task(binary.uploads.publishing.close())
        await asyncio.sleep(0)
        assert not closing.done()
        await gate.open()
        await closing
    assert len({one.file_key for one in await asyncio.gather(first, *tasks)}) == 3
