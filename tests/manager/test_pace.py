"""How much of what waits for one hot reference goes at once."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from bdr.manager import clock
from bdr.manager.grouping import Ask, Groups
from bdr.manager.lanes import Lanes

CALLERS = 64


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass, as the lane sees it."""
    now = [1000.0]
    monkeypatch.setattr(clock, "seconds", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


async def sizes_of_batches(
    go_on: Callable[[float], None],
    *,
    database: Callable[[], float],
    telling: float,
    calls: int,
    callers: int = CALLERS,
    late: int = 0,
) -> list[int]:
    """What batches a lane makes of callers who each ask anew once they are told, which takes `telling` seconds.

    So many of them come a moment late.
    """
    sizes: list[int] = []
    asked: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []

    async def commit(_key: str, asks: list[Ask[tuple[int, int], None]]) -> None:
        sizes.append(len(asks))
        told.extend(ask.item for ask in asks)
        # The others are told while the database is busy.
        await asyncio.sleep(0)
        go_on(database())
        for ask in asks:
            ask.give(None)

    groups: Groups[tuple[int, int], None] = Groups(_never)
    lanes = Lanes(groups, commit, asyncio.Semaphore(1), timedelta(seconds=30))

    async def caller(number: int) -> None:
        if number < late:
            await asyncio.sleep(0)
            # By now the others have been sent.
            await asyncio.sleep(0)
        for call in range(calls):
            ask: Ask[tuple[int, int], None] = Ask((number, call), "key", "Asking")
            asked.append(ask.item)
            lanes.add(ask)
            await ask.answered()
            go_on(telling)

    await asyncio.gather(*map(caller, range(callers)))
    await groups.close()
    assert len(told) == callers * calls
    assert told == asked
    return sizes


async def _never(_asks: list[Ask[tuple[int, int], None]]) -> None:
    pytest.fail("a hot reference has its lane")


async def test_while_the_database_has_one_half_the_other_is_told(go_on: Callable[[float], None]) -> None:
    sizes = await sizes_of_batches(go_on, database=lambda: 0.0001, telling=0.001, calls=20)
    assert sizes[0] == CALLERS
    assert set(sizes[1:]) == {CALLERS // 2}


async def test_where_the_database_is_slower_all_go_together(go_on: Callable[[float], None]) -> None:
    sizes = await sizes_of_batches(go_on, database=lambda: 1.0, telling=0.001, calls=20)
    assert set(sizes) == {CALLERS}


async def test_few_callers_go_together(go_on: Callable[[float], None]) -> None:
    sizes = await sizes_of_batches(go_on, database=lambda: 0.0001, telling=0.001, calls=20, callers=31)
    assert set(sizes) == {31}


async def test_a_caller_out_of_step_does_not_leave_it_so_for_good(go_on: Callable[[float], None]) -> None:
    sizes = await sizes_of_batches(go_on, database=lambda: 1.0, telling=0.001, calls=200, late=1)
    assert set(sizes[:60]) == {1, CALLERS - 1}
    assert set(sizes[70:-1]) == {CALLERS}
    sizes = await sizes_of_batches(go_on, database=lambda: 0.0001, telling=0.001, calls=200, late=1)
    assert set(sizes[70:200]) == {CALLERS // 2}


async def test_a_database_that_becomes_slow_is_noticed_and_one_that_becomes_fast_again_too(
    go_on: Callable[[float], None],
) -> None:
    batches = 0

    def database() -> float:
        nonlocal batches
        batches += 1
        return 1.0 if 200 <= batches < 400 else 0.0001

    sizes = await sizes_of_batches(go_on, database=database, telling=0.001, calls=400)
    assert set(sizes[2:190]) == {CALLERS // 2}
    assert set(sizes[270:390]) == {CALLERS}
    assert set(sizes[480:-2]) == {CALLERS // 2}
