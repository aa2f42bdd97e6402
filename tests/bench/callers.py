"""Throughput over the number of callers, for the picture; nothing here has a goal."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bench.counting import catalog_of, counting
from tests.bench.files import reading, storing
from tests.bench.ground import Ground
from tests.bench.measure import run_for
from tests.bench.sides import CALLERS, Sides
from tests.bench.verdict import Comparison


@asynccontextmanager
async def _counting(ground: Ground) -> AsyncIterator[Sides]:
    async with (
        catalog_of(ground, ground.sizes.references) as (catalog, keys),
        counting(catalog, keys, CALLERS) as sides,
    ):
        yield sides


@asynccontextmanager
async def _storing(ground: Ground) -> AsyncIterator[Sides]:
    async with ground.catalog() as catalog, storing(ground, catalog, CALLERS) as sides:
        yield sides


@asynccontextmanager
async def _reading(ground: Ground) -> AsyncIterator[Sides]:
    async with ground.catalog() as catalog, reading(catalog, ground.sizes.files, cached=False) as sides:
        yield sides


async def curves(ground: Ground) -> list[Comparison]:
    """Both sides of three kinds of work."""
    for work, making in {"register": _counting, "store": _storing, "get": _reading}.items():
        async with making(ground) as sides:
            for callers in ground.sizes.callers:
                for side, make_step in (("bdr", sides.ours), ("floor", sides.floor)):
                    rate = (await run_for(ground.sizes.glance, callers, make_step)).rate
                    ground.curves.callers.setdefault(f"{work}: {side}", []).append((callers, rate))
    return []
