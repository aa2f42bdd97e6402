"""Register and release, against one UPDATE of bare asyncpg each."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import bdr
from tests.bench import bare, filled
from tests.bench.ground import Catalog, Ground
from tests.bench.measure import Step
from tests.bench.sides import CALLERS, Compared, Sides, at_its_best
from tests.bench.verdict import Comparison, at_least, at_most

AGAINST: Final = "bare asyncpg, one UPDATE … RETURNING each"

Count = Callable[[str], Awaitable[object]]


def steps(keys: Sequence[str], register: Count, release: Count) -> Callable[[], Step]:
    """Callers that register a key of those and release it again, each step one call."""
    chance = random.Random(1)

    def make() -> Step:
        held: list[str] = []

        async def step() -> None:
            if held:
                await release(held.pop())
            else:
                held.append(chance.choice(keys))
                await register(held[0])

        return step

    return make


def our_steps(keys: Sequence[str], binary: bdr.BinaryDataLifecycleManager) -> Callable[[], Step]:
    """Callers of bdr."""
    return steps(keys, binary.register_reference, binary.release_reference)


@asynccontextmanager
async def counting(catalog: Catalog, keys: Sequence[str], callers: int) -> AsyncIterator[Sides]:
    """Both sides on one catalog."""

    def bare_steps(update: bare.Statement) -> Callable[[], Step]:
        return steps(keys, lambda key: update(key, 1), lambda key: update(key, -1))

    async with catalog.connect() as binary, at_its_best(catalog, bare.COUNT, callers, bare_steps) as floor:
        yield Sides(our_steps(keys, binary), floor)


@asynccontextmanager
async def catalog_of(ground: Ground, references: int) -> AsyncIterator[tuple[Catalog, list[str]]]:
    """A catalog with so many references, and their keys."""
    numbers = range(1, references + 1)
    async with ground.catalog() as catalog:
        await filled.introduce(catalog)
        await filled.fill(catalog, filled.HELD, numbers)
        await filled.settle(catalog)
        yield catalog, [filled.key(filled.HELD, number) for number in numbers]


async def _compare(ground: Ground, row: str, references: int, callers: int) -> Compared:
    async with (
        catalog_of(ground, references) as (catalog, keys),
        counting(catalog, keys, callers) as sides,
    ):
        return await sides.compare(ground, row, callers)


async def register(ground: Ground) -> list[Comparison]:
    """Many callers, many references."""
    references = ground.sizes.references
    compared = await _compare(ground, "register", references, CALLERS)
    work = f"register and release by {CALLERS} callers, {references:,} references"
    return [compared.by_rate("register", work, AGAINST, at_least(5))]


async def hot(ground: Ground) -> list[Comparison]:
    """Many callers, one reference."""
    compared = await _compare(ground, "hot", 1, CALLERS)
    work = f"register and release by {CALLERS} callers, one reference"
    return [compared.by_rate("hot", work, AGAINST, at_least(20))]


async def register_alone(ground: Ground) -> list[Comparison]:
    """One caller: how long half of its calls take."""
    compared = await _compare(ground, "register-alone", ground.sizes.references, 1)
    work = "register and release by one caller, median latency"
    return [compared.by_median("register-alone", work, AGAINST, at_most(1.4))]
