"""Four engine processes against one: with as many callers in all, and with as many each."""

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import bdr
from tests.bench.counting import catalog_of, our_steps
from tests.bench.ground import METADATA, SMALL, Catalog, Ground
from tests.bench.measure import Step, alternating, run_for
from tests.bench.sides import CALLERS
from tests.bench.verdict import Comparison, at_least, at_most
from tests.bench.workers import Answer, Go, Orders, rate_of, timed, together

ENGINES: Final = 4
_MOST_ROUNDS: Final = 5
_WARM: Final = 0.3
_DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


def life_steps(binary: bdr.BinaryDataLifecycleManager) -> Callable[[], Step]:
    """Callers that lead one file after another through its life, each step one call."""

    def make() -> Step:
        calls: list[Callable[[], Any]] = []

        async def store() -> None:
            key = (await binary.store_data(SMALL, METADATA)).file_key
            later = (binary.register_reference, binary.get_data, binary.release_reference, binary.delete_data)
            calls.extend(partial(call, key) for call in reversed(later))

        async def step() -> None:
            await (calls.pop() if calls else store)()

        return step

    return make


async def lives(go: Go, catalog: Catalog, callers: int, seconds: float) -> Answer:
    """One engine whose callers store, register, get, release and delete."""
    async with catalog.connect() as binary:
        return await _work(go, callers, seconds, life_steps(binary))


async def counts(go: Go, catalog: Catalog, callers: int, seconds: float, keys: Sequence[str]) -> Answer:
    """One engine whose callers register and release."""
    async with catalog.connect() as binary:
        return await _work(go, callers, seconds, our_steps(keys, binary))


async def _work(go: Go, callers: int, seconds: float, make_step: Callable[[], Step]) -> Answer:
    # Until all connections are there.
    await run_for(_WARM, callers, make_step)
    await go()
    with timed() as answer:
        answer.done = len((await run_for(seconds, callers, make_step)).latencies)
    return answer


async def _compare(
    ground: Ground, work: str, rate: Callable[[int, int], Coroutine[Any, Any, float]]
) -> list[Comparison]:
    """`rate` is that of so many engines with so many callers each."""
    sides = {
        f"{CALLERS} callers in all": partial(rate, ENGINES, CALLERS // ENGINES),
        f"{CALLERS} callers each": partial(rate, ENGINES, CALLERS),
        f"one engine with {CALLERS} callers": partial(rate, 1, CALLERS),
    }
    # Processes of their own, which have worked for a moment before they are measured.
    rates = await alternating(min(_MOST_ROUNDS, ground.sizes.rounds), sides, warm=True)
    *four, one = rates
    return [
        Comparison("engines", f"{work}: {ENGINES} engines, {side}", one, "/s", at_least(1), rates[side], rates[one])
        for side in four
    ]


async def engines(ground: Ground) -> list[Comparison]:
    """Total throughput, and whether anybody ever waited in a circle."""
    compared: list[Comparison] = []
    async with catalog_of(ground, ground.sizes.references) as (catalog, keys):
        for work, job, more in (
            ("register and release", counts, (keys,)),
            ("store, register, get, release, delete", lives, ()),
        ):

            async def rate(number: int, callers: int, job: Any = job, more: tuple[Any, ...] = more) -> float:
                arguments = (catalog, callers, ground.sizes.seconds, *more)
                return rate_of(await together([Orders(job, arguments)] * number))

            compared += await _compare(ground, work, rate)
        deadlocks = await catalog.fetchval(_DEADLOCKS)
    return [*compared, Comparison("engines", "deadlocks meanwhile", "-", "", at_most(0), [deadlocks])]
