"""How a measurement is made: callers side by side for some seconds, and two sides in alternating rounds."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

T = TypeVar("T")
Candidate = TypeVar("Candidate")

# One call of one caller.
Step = Callable[[], Awaitable[object]]

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Run:
    """What some callers did: the seconds that each call took, and all together."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Calls per second."""
        return len(self.latencies) / self.seconds

    @property
    def median_ms(self) -> float:
        """Half of the calls took no longer than this."""
        return median(self.latencies) * 1000

    @property
    def percentiles(self) -> dict[int, float]:
        """How long calls took, in milliseconds, by percentile."""
        if len(self.latencies) == 1:
            return dict.fromkeys(PERCENTILES, self.median_ms)
        cuts = quantiles(self.latencies, n=100)
        return {one: cuts[one - 1] * 1000 for one in PERCENTILES}


async def run_for(seconds: float, callers: int, make_step: Callable[[], Step]) -> Run:
    """Have `callers` make one call after another until the time is over."""
    latencies: list[float] = []

    async def caller(step: Step) -> None:
        now = time.perf_counter()
        while now < deadline:
            await step()
            before, now = now, time.perf_counter()
            latencies.append(now - before)

    steps = [make_step() for _ in range(callers)]
    # Neither side pays for what the other has left behind.
    gc.collect()
    began = time.perf_counter()
    deadline = began + seconds
    await asyncio.gather(*map(caller, steps))
    return Run(latencies, time.perf_counter() - began)


async def run_all(items: Iterable[T], callers: int, call: Callable[[T], Awaitable[object]]) -> Run:
    """Have `callers` do something with each of the items."""
    latencies: list[float] = []
    left = iter(items)

    async def caller() -> None:
        for item in left:
            before = time.perf_counter()
            await call(item)
            latencies.append(time.perf_counter() - before)

    gc.collect()
    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Run(latencies, time.perf_counter() - began)


async def alternating(
    rounds: int, sides: Mapping[str, Callable[[], Awaitable[T]]], *, warm: bool = False
) -> dict[str, list[T]]:
    """Each side once a round, in their order; unless they are `warm`, before that each once for nothing."""
    for measure in [] if warm else sides.values():
        await measure()
    found: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            found[name].append(await measure())
    return found


async def best(candidates: Iterable[Candidate], measure: Callable[[Candidate], Awaitable[float]]) -> Candidate:
    """With which the most was measured: a floor is only one where it is at its best."""
    found = [(await measure(one), one) for one in candidates]
    return max(found, key=lambda one: one[0])[1]
