"""The harness itself: it finds every order, notices who waits, and stays out of the way otherwise."""

from collections.abc import Callable
from math import comb

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.interleaving.choices import Choices, every_way
from tests.interleaving.schedule import Played, Work, arrive
from tests.interleaving.stage import Stage
from tests.interleaving.state import Ref, stored

TWO = stored(a=Ref("x"), b=Ref("y"))
ADD_ONE = text("UPDATE bdr.binary_data_reference SET ref_count = ref_count + 1 WHERE file_key = :key")


async def play_all(stage: Stage, works: Callable[[], dict[str, Work]]) -> list[Played]:
    played = []
    for choices in every_way():
        await stage.lay_out(TWO)
        played.append(await stage.schedule.play(works(), choices))
    return played


def adding(stage: Stage, *names: str) -> Work:
    """Adds one to each by a statement of its own, then commits."""

    async def work(own: AsyncConnection) -> None:
        for name in names:
            await own.execute(ADD_ONE, {"key": stage.keys[name]})

    return lambda: stage.database.transaction(work)


async def steps(count: int) -> None:
    for number in range(count):
        await arrive(str(number))


async def test_sessions_that_do_not_meet_are_played_in_every_order_there_is(stage: Stage) -> None:
    played = await play_all(
        stage, lambda: {"one": lambda: steps(3), "two": lambda: steps(2), "three": lambda: steps(2)}
    )
    assert len({tuple(one.steps) for one in played}) == len(played) == comb(7, 3) * comb(4, 2)


async def test_each_statement_and_each_commit_is_a_step(stage: Stage) -> None:
    played = await play_all(stage, lambda: {"one": adding(stage, "a", "b"), "two": adding(stage, "a")})
    alone = ["UPDATE binary_data_reference", "UPDATE binary_data_reference", "COMMIT"]
    assert [step for name, step in played[0].steps if name == "one"] == alone


async def test_a_step_that_waits_is_noticed_and_collected_when_the_lock_is_free(stage: Stage) -> None:
    played = await play_all(stage, lambda: {"one": adding(stage, "a"), "two": adding(stage, "a")})
    # Two orders without a wait; in two more the second update waits, and there is then one way to go on.
    assert sorted(len(one.waited) for one in played) == [0, 0, 1, 1]
    assert (await stage.observe()).references["a"].count == 2


async def test_a_circle_of_waiting_is_noticed_and_ended_by_the_server(stage: Stage) -> None:
    played = await play_all(stage, lambda: {"one": adding(stage, "a", "b"), "two": adding(stage, "b", "a")})
    circles = [one for one in played if one.deadlocked]
    assert circles
    assert all("deadlock detected" in f"{[*one.results.values()]}" for one in circles)
    assert not any(
        isinstance(result, Exception) for one in played if not one.deadlocked for result in one.results.values()
    )


async def test_the_error_of_a_session_is_its_result(stage: Stage) -> None:
    async def failing() -> None:
        await arrive("fail")
        raise ZeroDivisionError

    await stage.lay_out(TWO)
    played = await stage.schedule.play({"one": failing, "two": adding(stage, "a")}, Choices())
    assert isinstance(played.results["one"], ZeroDivisionError)
    assert played.results["two"] is None


async def test_who_ended_before_another_began_is_remembered(stage: Stage) -> None:
    played = await play_all(stage, lambda: {"one": lambda: steps(1), "two": lambda: steps(2)})
    orders = {tuple(name for name, _ in one.steps): one.before for one in played}
    assert orders == {
        ("one", "two", "two"): {"one": set(), "two": {"one"}},
        ("two", "one", "two"): {"one": set(), "two": set()},
        ("two", "two", "one"): {"one": {"two"}, "two": set()},
    }
