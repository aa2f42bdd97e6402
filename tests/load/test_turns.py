"""Who gets a connection next, and that no place is ever lost or given twice."""

import asyncio
import random
from datetime import timedelta

import pytest

from bdr.catalog.turns import Turns, ahead
from tests.fixtures.engines import AT_ONCE

HOUR = timedelta(hours=1)


async def waiting(turns: Turns, number: int, order: list[int], *, first: bool = False) -> "asyncio.Task[None]":
    """A task that waits for a place, notes that it has it, and gives it back."""

    async def take() -> None:
        await turns.take()
        order.append(number)
        turns.give()

    async def take_ahead() -> None:
        with ahead():
            await take()

    task = asyncio.create_task(take_ahead() if first else take())
    await asyncio.sleep(0)
    return task


async def test_what_was_begun_goes_first_and_then_whoever_has_waited_longest() -> None:
    turns = Turns(1, HOUR)
    await turns.take()
    order: list[int] = []
    tasks = [await waiting(turns, number, order, first=number in (3, 5)) for number in range(6)]
    turns.give()
    await asyncio.gather(*tasks)
    assert order == [3, 5, 0, 1, 2, 4]


async def test_a_place_that_does_not_come_in_time_is_a_time_out() -> None:
    turns = Turns(1, AT_ONCE)
    await turns.take()
    with pytest.raises(TimeoutError):
        await turns.take()
    turns.give()
    await turns.take()


@pytest.mark.parametrize("given_first", [True, False])
async def test_a_place_goes_to_the_next_when_who_would_have_it_is_cancelled(*, given_first: bool) -> None:
    turns = Turns(1, HOUR)
    await turns.take()
    order: list[int] = []
    gone, following = [await waiting(turns, number, order) for number in range(2)]
    for act in (turns.give, gone.cancel) if given_first else (gone.cancel, turns.give):
        act()
    await asyncio.wait({gone, following})
    assert gone.cancelled()
    assert order == [1]
    await turns.take()


async def test_no_place_is_lost_or_given_twice_whoever_gives_up_when() -> None:
    turns = Turns(3, timedelta(milliseconds=2))
    chance = random.Random(1)
    held = 0

    async def use() -> None:
        nonlocal held
        await turns.take()
        held += 1
        assert held <= 3
        try:
            await asyncio.sleep(chance.random() / 500)
        finally:
            held -= 1
            turns.give()

    tasks = [asyncio.create_task(use()) for _ in range(500)]
    for _ in tasks:
        await asyncio.sleep(0)
        if chance.random() < 0.4:
            chance.choice(tasks).cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in ended} == {type(None), TimeoutError, asyncio.CancelledError}
    for _ in range(3):
        await turns.take()
    with pytest.raises(TimeoutError):
        await turns.take()
