"""What many callers count at once goes in groups, and comes out as if each had been alone, in the order they came."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import (
    BinaryDataLifecycleManager,
    BinaryStorageConfig,
    Busy,
    DatabaseConfig,
    FileNotFound,
    InstanceClosed,
    InstanceConfig,
    NotReferenced,
    OperationError,
)
from bdr import connect as connected
from bdr.catalog.count import Counted
from bdr.errors import OutcomeUnknown
from bdr.settings import load_settings
from tests.fixtures.engines import SOON, Connect
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.gate import closed_gate
from tests.lifecycle.support import change, count_of, rows, set_count, until_quiet, until_waiting
from tests.manager.support import statements_of
from tests.reaper.support import store_many
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
LOCK = "SELECT FROM bdr.binary_data_reference WHERE file_key = :key FOR UPDATE"


async def outcomes(*calls: Coroutine[Any, Any, int]) -> list[object]:
    """What each gives back, or the class of its error."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in ended]


@pytest.mark.both_majors
async def test_each_caller_gets_the_answer_of_its_place_in_the_order(binary: Binary) -> None:
    first, second = await store_many(binary, 2)
    up, down = binary.register_reference, binary.release_reference
    # The first goes alone, the others in the group that is gathered meanwhile.
    assert await outcomes(up(first), down(first), up(second), down(first), up(first), up(second)) == [2, 1, 2, 0, 1, 3]


@pytest.mark.both_majors
async def test_a_release_at_zero_is_refused_although_a_registration_follows_in_its_group(binary: Binary) -> None:
    (key, other) = await store_many(binary, 2)
    await set_count(binary, key, 0)
    up, down = binary.register_reference, binary.release_reference
    assert await outcomes(down(key), up(key), up(other), down(key), down(key)) == [
        NotReferenced,
        1,
        2,
        0,
        NotReferenced,
    ]
    assert await count_of(binary, key) == 0


async def test_what_is_held_by_name_is_no_part_of_what_a_group_may_release(binary: Binary) -> None:
    (key,) = await store_many(binary, 1)
    await binary.register_reference(key, holder="node")
    down, up = binary.release_reference, binary.register_reference
    assert await outcomes(down(key), down(key), up(key), down(key)) == [1, NotReferenced, 2, 1]


async def test_one_that_is_not_there_fails_by_itself(binary: Binary) -> None:
    (key, gone) = await store_many(binary, 2)
    await binary.delete_data(gone)
    up = binary.register_reference
    ended = await asyncio.gather(up(key), up(gone), up(key), up("x" * 26), return_exceptions=True)
    assert list(ended[0::2]) == [2, 3]
    assert [isinstance(one, FileNotFound) for one in ended] == [False, True, False, True]


async def test_callers_at_once_share_a_statement(binary: Binary) -> None:
    keys = await store_many(binary, 20)
    sent = statements_of(binary, "UPDATE bdr.binary_data_reference")
    await asyncio.gather(*(binary.register_reference(key) for key in keys * 10))
    assert len(sent) <= 4
    assert [await count_of(binary, key) for key in keys] == [11] * 20


async def test_another_group_goes_beside_one_without_the_references_of_that_one(
    binary: Binary, database_url: str
) -> None:
    first, *keys = await store_many(binary, 37)
    taken, free = keys[:20], keys[20:]
    sent = statements_of(binary, "UPDATE bdr.binary_data_reference")
    async with closed_gate(database_url) as gate:
        tasks = [asyncio.create_task(binary.register_reference(key)) for key in [first, *taken]]
        # The first by itself, the others together.
        await gate.reached(2)
        tasks += [asyncio.create_task(binary.register_reference(key)) for key in [*taken, *free]]
        await gate.reached(3)
        await gate.open()
        assert await asyncio.gather(*tasks) == [2] * 21 + [3] * 20 + [2] * 16
    # Were all sent at once, those of the group would be found locked, and asked for one by one.
    assert len(sent) <= 5


async def test_many_callers_go_in_two_groups_at_once(binary: Binary, database_url: str) -> None:
    first, *keys = await store_many(binary, 65)
    async with closed_gate(database_url) as gate:
        tasks = [asyncio.create_task(binary.register_reference(key)) for key in [first, *keys]]
        await gate.reached(3)
        await gate.open()
        assert await asyncio.gather(*tasks) == [2] * 65


async def test_many_that_are_not_there_are_told_by_one_statement(binary: Binary) -> None:
    gone = await store_many(binary, 20)
    for key in gone:
        await binary.delete_data(key)
    sent = statements_of(binary, "UPDATE bdr.binary_data_reference")
    assert await asyncio.gather(*(binary.counting.count(key, 1) for key in gone)) == [Counted(None, None, None)] * 20
    # The first is asked for by itself, the others together.
    assert len(sent) <= 3


async def test_releases_of_too_much_cost_no_statement_each(binary: Binary) -> None:
    key, other = await store_many(binary, 2)
    sent = statements_of(binary, "UPDATE bdr.binary_data_reference")
    down = binary.release_reference
    ended = await outcomes(down(other), *(down(key) for _ in range(20)), binary.register_reference(key), down(key))
    assert ended == [0, 0, *[NotReferenced] * 19, 1, 0]
    assert len(sent) <= 10


async def test_a_caller_that_is_cancelled_before_there_is_a_connection_has_counted_nothing(connect: Connect) -> None:
    binary = await connect(database=DatabaseConfig(pool_size=1))
    (key,) = await store_many(binary, 1)
    async with binary.engine.database.reading():
        first, second = (asyncio.create_task(binary.register_reference(key)) for _ in range(2))
        await asyncio.sleep(0)

        async def waits() -> bool:
            return len(binary.engine.database._turns._others) == 1

        await until(waits)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert await second == 2
    assert await count_of(binary, key) == 2


async def test_what_all_callers_have_taken_back_is_not_sent(connect: Connect) -> None:
    binary = await connect(database=DatabaseConfig(pool_size=1))
    keys = await store_many(binary, 3)
    sent = statements_of(binary, "UPDATE bdr.binary_data_reference")
    async with binary.engine.database.reading():
        tasks = [asyncio.create_task(binary.register_reference(key)) for key in keys]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 3
    assert await binary.register_reference(keys[0]) == 2
    assert len(sent) == 1


async def test_who_asked_first_for_what_is_then_found_locked_is_counted_first(
    binary: Binary, caller: AsyncEngine, database_url: str
) -> None:
    locked, other = await store_many(binary, 2)
    async with closed_gate(database_url) as gate:
        first = asyncio.create_task(binary.register_reference(other))
        await gate.reached()
        async with caller.begin() as own:
            await own.execute(text(LOCK), {"key": locked})
            # In a group that has found it locked, and stands at its commit because of the other one.
            tasks = [asyncio.create_task(binary.register_reference(key)) for key in (locked, other)]
            await asyncio.sleep(0)
            await gate.let_through()
            await gate.reached()
            # Gathered behind that group, and asked for when it is over.
            tasks.append(asyncio.create_task(binary.register_reference(locked)))
            await asyncio.sleep(0)
            await gate.open()
            await first
            await until_waiting(binary)
            tasks.append(asyncio.create_task(binary.register_reference(locked)))
            await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [2, 3, 3, 4]


async def test_a_reference_that_somebody_has_locked_delays_only_those_who_ask_for_it(
    binary: Binary, caller: AsyncEngine
) -> None:
    locked, free = await store_many(binary, 2)
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"key": locked})
        waiting = [asyncio.create_task(binary.register_reference(locked)) for _ in range(50)]
        await until_waiting(binary)
        assert [await binary.register_reference(free) for _ in range(5)] == [2, 3, 4, 5, 6]
        waiting += [asyncio.create_task(binary.release_reference(locked)) for _ in range(20)]
        assert await binary.register_reference(free) == 7
        # However many wait, they wait on one connection.
        assert await rows(binary, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)]
    assert await asyncio.gather(*waiting) == [*range(2, 52), *range(50, 30, -1)]
    assert await count_of(binary, locked) == 31


async def test_a_lock_that_is_not_let_go_of_in_time_is_busy_and_changes_nothing(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(database=DatabaseConfig(lock_timeout=timedelta(milliseconds=100)))
    (locked,) = await store_many(binary, 1)
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"key": locked})
        assert await outcomes(*(binary.register_reference(locked) for _ in range(3))) == [Busy] * 3
    assert await binary.register_reference(locked) == 2


async def test_many_that_are_locked_leave_connections_for_the_others(connect: Connect, caller: AsyncEngine) -> None:
    binary = await connect(database=DatabaseConfig(pool_size=2))
    *locked, free = await store_many(binary, 6)
    async with caller.begin() as own:
        for key in locked:
            await own.execute(text(LOCK), {"key": key})
        waiting = [asyncio.create_task(binary.register_reference(key)) for key in locked]
        await until_waiting(binary)
        assert await binary.register_reference(free) == 2
    assert await asyncio.gather(*waiting) == [2] * 5


async def test_one_that_gets_no_turn_to_wait_for_a_lock_is_busy_in_time(connect: Connect, caller: AsyncEngine) -> None:
    limits = DatabaseConfig(pool_size=2, pool_timeout=timedelta(milliseconds=100))
    binary = await connect(database=limits)
    first, second = await store_many(binary, 2)
    async with caller.begin() as own:
        for key in (first, second):
            await own.execute(text(LOCK), {"key": key})
        waiting = asyncio.create_task(binary.register_reference(first))
        await until_waiting(binary)
        with pytest.raises(Busy, match="Too many references were locked"):
            await binary.register_reference(second)
    assert await waiting == 2
    assert await binary.register_reference(second) == 2


async def test_keys_that_are_asked_for_all_the_time_take_turns_with_others(
    connect: Connect, caller: AsyncEngine
) -> None:
    binary = await connect(database=DatabaseConfig(pool_size=2))
    busy, other = await store_many(binary, 2)
    enough = asyncio.Event()

    async def ask_on() -> None:
        while not enough.is_set():
            await binary.register_reference(busy)

    async with caller.begin() as own:
        for key in (busy, other):
            await own.execute(text(LOCK), {"key": key})
        asking = [asyncio.create_task(ask_on()) for _ in range(2)]
        await until_waiting(binary)
        waiting = asyncio.create_task(binary.register_reference(other))
        await asyncio.sleep(0)
    assert await waiting == 2
    enough.set()
    await asyncio.gather(*asking)


async def test_a_caller_that_is_cancelled_takes_the_group_away_from_nobody(binary: Binary, database_url: str) -> None:
    first, second = await store_many(binary, 2)
    async with closed_gate(database_url) as gate:
        under_way = [asyncio.create_task(binary.register_reference(key)) for key in (first, second)]
        await gate.reached()
        gathered = [asyncio.create_task(binary.register_reference(key)) for key in (first, second)]
        await asyncio.sleep(0)
        for task in (under_way[0], gathered[0]):
            task.cancel()
        with pytest.raises(OutcomeUnknown, match=f"Registering on {first}") as unknown:
            await under_way[0]
        with pytest.raises(asyncio.CancelledError):
            await gathered[0]
        await gate.open()
        assert unknown.value.cancelled
        assert [await under_way[1], await gathered[1]] == [2, 3]
    assert [await count_of(binary, key) for key in (first, second)] == [2, 3]


@pytest.mark.parametrize("happens", [True, False])
async def test_a_lost_answer_is_told_to_each_of_a_group_with_its_own_key(
    binary: Binary, connect_through: ConnectThrough, database_url: str, happens: bool
) -> None:
    far, proxy = await connect_through()
    keys = await store_many(binary, 3)
    async with closed_gate(database_url) as gate:
        tasks = [asyncio.create_task(far.register_reference(key)) for key in keys]
        # The first by itself, the others together.
        await gate.reached(2)
        if happens:
            proxy.cut()
        else:
            await gate.end_sessions()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, OutcomeUnknown) and one.keys == (key,) for one, key in zip(ended, keys, strict=True))
    assert len(set(map(id, ended))) == 3
    await until_quiet(binary)
    assert [await count_of(binary, key) for key in keys] == [2 if happens else 1] * 3
    assert await far.register_reference(keys[0]) == (3 if happens else 2)


async def test_a_lost_answer_concerns_only_what_was_sent_of_all_that_waits_for_one_reference(
    binary: Binary, connect_through: ConnectThrough, database_url: str
) -> None:
    far, proxy = await connect_through()
    (key,) = await store_many(binary, 1)
    async with closed_gate(database_url) as gate:
        # Both together are too many, so that the first goes first, without the other.
        tasks = [asyncio.create_task(far.release_reference(key)) for _ in range(2)]
        await gate.reached()
        proxy.cut()
        await gate.open()
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, OutcomeUnknown)
    assert isinstance(second, NotReferenced)
    await until_quiet(binary)
    assert await count_of(binary, key) == 0


async def test_one_that_the_server_refuses_does_not_fail_the_others(binary: Binary) -> None:
    keys = await store_many(binary, 3)
    await change(
        binary,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'",
    )
    await change(
        binary,
        "CREATE TRIGGER refuse BEFORE UPDATE ON bdr.binary_data_reference FOR EACH ROW "
        f"WHEN (OLD.file_key = '{keys[1]}') EXECUTE FUNCTION refuse()",
    )
    assert await outcomes(*(binary.register_reference(key) for key in keys)) == [2, OperationError, 2]
    assert await count_of(binary, keys[1]) == 1


async def test_a_close_waits_for_what_was_asked_for_before(binary: Binary, database_url: str) -> None:
    (key,) = await store_many(binary, 1)
    async with closed_gate(database_url) as gate:
        tasks = [asyncio.create_task(binary.register_reference(key)) for _ in range(5)]
        await gate.reached()
        closing = asyncio.create_task(binary.counting.close())
        await asyncio.sleep(0)
        assert not closing.done()
        await gate.open()
        await closing
    assert await asyncio.gather(*tasks) == [2, 3, 4, 5, 6]


async def test_signs_of_life_go_on_while_a_close_waits(connect: Connect, caller: AsyncEngine) -> None:
    watcher = await connect()
    heard = "SELECT heartbeat_at FROM bdr.engine_instance WHERE name = 'closing'"
    closing = AsyncExitStack()
    limits = DatabaseConfig(lock_timeout=timedelta(minutes=1))
    settings = load_settings(
        database_url=caller.url.render_as_string(hide_password=False).replace("+asyncpg", ""),
        storage=BinaryStorageConfig(storage_type="memory"),
        database=limits,
        instance=InstanceConfig(name="closing", heartbeat_interval=SOON),
    )
    binary = await closing.enter_async_context(connected(settings=settings))
    (key,) = await store_many(watcher, 1)
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"key": key})
        waiting = asyncio.create_task(binary.register_reference(key))
        await until_waiting(watcher)
        leaving = asyncio.create_task(closing.aclose())

        async def is_closed() -> bool:
            try:
                binary.engine.require_open()
            except InstanceClosed:
                return True
            return False

        await until(is_closed)
        [(before,)] = await rows(watcher, heard)

        async def beats() -> bool:
            return bool((await rows(watcher, heard))[0][0] > before)

        await until(beats)
    assert await waiting == 2
    await leaving


async def test_a_mistake_of_ours_is_raised_to_who_asked_and_keeps_nobody_waiting(
    binary: Binary, caller: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, locked = await store_many(binary, 2)

    async def mistaken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        for way in ("count_free", "count_one"):
            patch.setattr(f"bdr.manager.counting.{way}", mistaken)
        assert await outcomes(*(binary.register_reference(free) for _ in range(3))) == [ZeroDivisionError] * 3
    async with caller.begin() as own:
        await own.execute(text(LOCK), {"key": locked})
        waiting = asyncio.create_task(binary.register_reference(locked))
        await until_waiting(binary)
        monkeypatch.setattr("bdr.manager.counting.count_one", mistaken)
        later = asyncio.create_task(binary.register_reference(locked))
    assert await outcomes(_done(waiting), _done(later)) == [2, ZeroDivisionError]
    monkeypatch.undo()
    assert await binary.register_reference(free) == 2


async def _done(task: "asyncio.Task[int]") -> int:
    return await task
