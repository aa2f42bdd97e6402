"""Two sides of one measurement: bdr, and the floor that it is held against."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tests.bench import bare
from tests.bench.ground import Catalog, Ground
from tests.bench.measure import Run, Step, alternating, best, run_for
from tests.bench.verdict import Comparison, Goal

CALLERS: Final = 64
# With these the bare driver is tried, and measured with the best of them.
_CONNECTIONS: Final = (4, 10, 32)
_GLANCE: Final = 0.3


@dataclass(frozen=True)
class Compared:
    """The runs of both sides, a pair for each round."""

    ours: list[Run]
    floor: list[Run]

    def by_rate(self, row: str, work: str, against: str, goal: Goal) -> Comparison:
        """Held against each other by calls per second."""
        ours, floor = ([run.rate for run in runs] for runs in (self.ours, self.floor))
        return Comparison(row, work, against, "/s", goal, ours, floor)

    def by_median(self, row: str, work: str, against: str, goal: Goal) -> Comparison:
        """Held against each other by how long half of the calls take."""
        ours, floor = ([run.median_ms for run in runs] for runs in (self.ours, self.floor))
        return Comparison(row, work, against, "ms", goal, ours, floor)


@dataclass(frozen=True)
class Sides:
    """What each caller of either side does."""

    ours: Callable[[], Step]
    floor: Callable[[], Step]

    async def compare(self, ground: Ground, name: str, callers: int) -> Compared:
        """Both by so many callers, in alternating rounds; keeps the latencies for the picture."""
        seconds = ground.sizes.seconds
        runs = await alternating(
            ground.sizes.rounds,
            {
                "bdr": lambda: run_for(seconds, callers, self.ours),
                "floor": lambda: run_for(seconds, callers, self.floor),
            },
        )
        for side, of_side in runs.items():
            ground.curves.note(f"{name}: {side}", of_side)
        return Compared(runs["bdr"], runs["floor"])


@asynccontextmanager
async def at_its_best(
    catalog: Catalog, sql: str, callers: int, make: Callable[[bare.Statement], Callable[[], Step]]
) -> AsyncIterator[Callable[[], Step]]:
    """Steps that use a statement of the bare driver, on the number of connections that is best for so many callers."""

    async def rate(connections: int) -> float:
        async with bare.prepared(catalog.url, sql, connections) as statement:
            return (await run_for(_GLANCE, callers, make(statement))).rate

    connections = 1 if callers == 1 else await best(_CONNECTIONS, rate)
    async with bare.prepared(catalog.url, sql, connections) as statement:
        yield make(statement)
