"""Plays operations against each other in every order of their steps, and judges each by the rules."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bdr.errors import BinaryStorageError
from tests.interleaving.choices import every_way
from tests.interleaving.schedule import Played
from tests.interleaving.serial import Operation, Outcome, outcomes
from tests.interleaving.stage import Stage
from tests.interleaving.state import State


@dataclass
class Explored:
    """What came of all orders.

    Attributes:
        orders: how many there are, and were played.
        wrong: what no rule explains, with the order of steps that brings it about.
    """

    orders: int = 0
    wrong: list[str] = field(default_factory=list)


async def explore(
    stage: Stage, start: State, cases: Iterable[Sequence[Operation]], *, until_wrong: str | None = None
) -> Explored:
    """Play every order of the steps of each case's operations, each time on a catalog that holds `start`.

    With `until_wrong` only until an order is wrong in a way that this sentence, or part of one, describes.
    """
    explored = Explored()
    for operations in cases:
        await _explore(stage, start, _named(operations), explored, until_wrong)
    return explored


async def _explore(
    stage: Stage, start: State, operations: Mapping[str, Operation], explored: Explored, until_wrong: str | None
) -> None:
    allowed: dict[frozenset[tuple[str, frozenset[str]]], list[Outcome]] = {}
    works = {name: partial(one.run, stage) for name, one in operations.items()}
    for choices in every_way():
        await stage.lay_out(start)
        played = await stage.schedule.play(works, choices)
        seen = {name: _result(result) for name, result in played.results.items()}, await stage.observe()
        times = frozenset(played.before.items())
        if times not in allowed:
            allowed[times] = outcomes(start, operations, played.before)
        explored.orders += 1
        explored.wrong += _judged(played, operations, seen, allowed[times])
        if until_wrong is not None and any(until_wrong in one for one in explored.wrong):
            return


def _named(operations: Sequence[Operation]) -> dict[str, Operation]:
    named: dict[str, Operation] = {}
    for one in operations:
        taken = sum(name.startswith(one.name) for name in named)
        named[f"{one.name} ({taken + 1})" if taken else one.name] = one
    return named


def _result(result: object) -> object:
    """What is compared: of an error its class, if it is one that bdr raises on purpose."""
    if not isinstance(result, BaseException):
        return result
    if isinstance(result, BinaryStorageError) and not _is_deadlock(result):
        return type(result)
    return f"{type(result).__name__}: {result}"


def _is_deadlock(error: BaseException | None) -> bool:
    while error is not None:
        if "deadlock detected" in str(error):
            return True
        error = error.__cause__
    return False


def _judged(
    played: Played, operations: Mapping[str, Operation], seen: Outcome, allowed: Sequence[Outcome]
) -> list[str]:
    wrong = seen[1].violations()
    if played.deadlocked:
        wrong.append("deadlock: all wait for each other")
    waiting = {played.steps[number][0] for number in played.waited}
    wrong += [f"{name} waits for a lock" for name in sorted(waiting) if not operations[name].waits]
    if seen not in allowed:
        wrong.append("no serial order explains the outcome")
    if not wrong:
        return []
    steps = "".join(
        f"  {name}: {step}{' (waits)' if number in played.waited else ''}\n"
        for number, (name, step) in enumerate(played.steps)
    )
    expected = "".join(f"  {results} {state}\n" for results, state in allowed)
    return [f"{'; '.join(wrong)}\n{steps}seen:\n  {seen[0]} {seen[1]}\nallowed:\n{expected}"]
