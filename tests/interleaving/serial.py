"""What may come of operations: what would come of them one after another, in any order that time allows.

Each operation has a *rule*: what it does to a `State` in one go, and what it gives back. Where bdr promises less than
one go, such as a delete whose object goes after its reference, the rule is a generator that yields in between. The
outcome of every order of steps must be one that some serial order of the rules explains, and whatever had ended before
another began comes first in it.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from inspect import isgenerator
from typing import Any

from tests.interleaving.choices import Choices, every_way
from tests.interleaving.stage import Stage
from tests.interleaving.state import State

Before = Mapping[str, frozenset[str]]
Outcome = tuple[dict[str, object], State]


@dataclass
class Turn:
    """What a rule sees when it is its turn.

    Attributes:
        state: what the operations before it have left.
        overlapping: whether others were under way at the same time.
    """

    state: State
    overlapping: bool
    choices: Choices

    def skips(self) -> bool:
        """Whether it passes over a row (SKIP LOCKED): that may only be if somebody else could have it locked."""
        return self.overlapping and self.choices.pick((False, True))


Rule = Callable[[Turn], Any]


@dataclass(frozen=True)
class Operation:
    """One thing that a session does.

    Attributes:
        run: the real thing.
        rule: what must come of it; gives back what `run` does, or the class of the error that it raises.
        waits: whether a step of it may have to wait for a lock.
    """

    name: str
    run: Callable[[Stage], Awaitable[object]]
    rule: Rule
    waits: bool = True


def then(*operations: Operation) -> Operation:
    """A session that does one after another, and gives back all results."""

    async def run(stage: Stage) -> object:
        return [await one.run(stage) for one in operations]

    def rule(turn: Turn) -> Generator[None, None, object]:
        results: list[object] = []
        for one in operations:
            if results:
                yield
            results.append((yield from in_parts(one.rule, turn)))
        return results

    return Operation(", then ".join(one.name for one in operations), run, rule)


def outcomes(start: State, operations: Mapping[str, Operation], before: Before) -> list[Outcome]:
    """What every serial order comes to: the results by session, and the state in the end."""
    return [_one_after_another(start, operations, before, choices) for choices in every_way()]


def _one_after_another(start: State, operations: Mapping[str, Operation], before: Before, choices: Choices) -> Outcome:
    state = deepcopy(start)
    results: dict[str, object] = {}
    begun: dict[str, Generator[None, None, object]] = {}
    while len(results) < len(operations):
        ready = [
            name for name in operations if name not in results and (name in begun or before[name] <= results.keys())
        ]
        name = choices.pick(ready)
        if name not in begun:
            begun[name] = in_parts(operations[name].rule, Turn(state, _overlaps(name, before), choices))
        try:
            next(begun[name])
        except StopIteration as end:
            results[name] = end.value
    return results, state


def in_parts(rule: Rule, turn: Turn) -> Generator[None, None, object]:
    """The rule as a generator, also when it does everything in one go."""
    result = rule(turn)
    if isgenerator(result):
        result = yield from result
    return result


def _overlaps(name: str, before: Before) -> bool:
    return any(other not in before[name] and name not in before[other] for other in before if other != name)
