"""Who meets whom, on what: every test of this package is a family of cases that begin on the same rows."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Final

from bdr.catalog.blob import LIVE
from tests.figures import ORDERS
from tests.interleaving.explore import explore
from tests.interleaving.serial import Operation
from tests.interleaving.stage import Stage
from tests.interleaving.state import BlobRow, Ref, State, stored

Cases = Sequence[Sequence[Operation]]
# Under this name each test reports how many orders it played; `tests/figures.py` adds them up.
Report = Callable[[str, object], None]

IDLE: Final = stored(a=Ref("x", idle=True))
AGED: Final = stored(a=Ref("x", count=1, aged=True))
SHARED: Final = stored(a=Ref("x", idle=True), b=Ref("x", idle=True))
HALF_HELD: Final = stored(a=Ref("x", idle=True), b=Ref("x", count=1, at_once=True))
TWO: Final = stored(a=Ref("x", idle=True), b=Ref("y", idle=True))
LEASED: Final = stored(a=Ref("x", count=1, at_once=True, holders={"h": True}))
STOPPED: Final = State(
    references={"a": Ref("x", count=1, holders={"h": True}, bound=True)},
    blobs={"x": BlobRow(LIVE)},
    objects={"x"},
    instances={"engine": "dead"},
)
RUNNING: Final = Counter({"store running": 1, "store succeeded": 1, "retrieve succeeded": 1})


@dataclass(frozen=True)
class Family:
    """Cases on the same rows.

    Attributes:
        at_least: how many orders of steps there must be, lest they become few without anybody noticing.
    """

    name: str
    start: State
    cases: Cases
    at_least: int

    def __str__(self) -> str:
        return self.name


def each_two(*operations: Operation) -> Cases:
    """Every two of them, and each with itself."""
    return list(combinations_with_replacement(operations, 2))


async def check(stage: Stage, family: Family, report: Report) -> None:
    """Play the family; fails when an outcome is not one that the rules allow, or when too little was played."""
    explored = await explore(stage, family.start, family.cases)
    assert not explored.wrong, f"{len(explored.wrong)} orders are wrong, such as:\n" + "\n\n".join(explored.wrong[:3])
    assert explored.orders >= family.at_least, f"only {explored.orders} orders of steps were played"
    report(ORDERS, explored.orders)
