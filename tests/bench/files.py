"""Small files: store and get, against bare OpenDAL."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import bdr
from tests.bench import bare
from tests.bench.ground import METADATA, SMALL, Catalog, Ground
from tests.bench.measure import Step, run_all
from tests.bench.sides import CALLERS, Compared, Sides, at_its_best
from tests.bench.verdict import Comparison, at_least, at_most

STORED: Final = "bare OpenDAL write, synced with its folders, and an INSERT of bare asyncpg"
READ: Final = "bare OpenDAL read"
# Of those that are read again and again, all are in the cache.
_CACHED: Final = 100


@asynccontextmanager
async def storing(ground: Ground, catalog: Catalog, callers: int) -> AsyncIterator[Sides]:
    """Both sides, on one catalog and two folders."""
    await catalog.execute(bare.TABLE)
    files = bare.BareFiles(ground.new_folder("bare"))

    def bare_steps(insert: bare.Statement) -> Callable[[], Step]:
        return lambda: lambda: files.store(SMALL, insert)

    async with catalog.connect() as binary, at_its_best(catalog, bare.INSERT, callers, bare_steps) as floor:
        yield Sides(lambda: lambda: binary.store_data(SMALL, METADATA), floor)


@asynccontextmanager
async def reading(catalog: Catalog, files: int, *, cached: bool) -> AsyncIterator[Sides]:
    """Both sides on the same files, all of which were read before."""
    chance = random.Random(1)
    cache = bdr.CacheConfig() if cached else bdr.CacheConfig(capacity=0)
    async with catalog.connect(cache=cache) as binary:
        keys = await store_many(binary, files)
        paths = [(await binary.get_details(key)).object_path for key in keys]
        for key in keys:
            await binary.get_data(key)
        bare_files = bare.BareFiles(catalog.folder)
        yield Sides(
            lambda: lambda: binary.get_data(chance.choice(keys)),
            lambda: lambda: bare_files.read(chance.choice(paths)),
        )


async def store_many(
    binary: bdr.BinaryDataLifecycleManager, number: int, metadata: bdr.BinaryDataMetadata = METADATA
) -> list[str]:
    """Store so many small files; gives back their keys."""
    keys: list[str] = []

    async def store(_: int) -> None:
        keys.append((await binary.store_data(SMALL, metadata)).file_key)

    await run_all(range(number), CALLERS, store)
    return keys


async def _store(ground: Ground, row: str, callers: int) -> Compared:
    async with ground.catalog() as catalog, storing(ground, catalog, callers) as sides:
        return await sides.compare(ground, row, callers)


async def _get(ground: Ground, row: str, callers: int, files: int, *, cached: bool) -> Compared:
    async with ground.catalog() as catalog, reading(catalog, files, cached=cached) as sides:
        return await sides.compare(ground, row, callers)


async def store(ground: Ground) -> list[Comparison]:
    """Many callers."""
    compared = await _store(ground, "store", CALLERS)
    return [compared.by_rate("store", f"store 4 KiB by {CALLERS} callers", STORED, at_least(1.3))]


async def store_alone(ground: Ground) -> list[Comparison]:
    """One caller: how long half of its calls take."""
    compared = await _store(ground, "store-alone", 1)
    return [compared.by_median("store-alone", "store 4 KiB by one caller, median latency", STORED, at_most(1.6))]


async def get(ground: Ground) -> list[Comparison]:
    """Many callers; nothing is cached but by the operating system."""
    compared = await _get(ground, "get", CALLERS, ground.sizes.files, cached=False)
    return [compared.by_rate("get", f"get 4 KiB, not cached, by {CALLERS} callers", READ, at_least(0.85))]


async def get_cached(ground: Ground) -> list[Comparison]:
    """One caller; all is cached."""
    compared = await _get(ground, "get-cached", 1, _CACHED, cached=True)
    return [compared.by_rate("get-cached", "get 4 KiB, cached, by one caller", READ, at_least(40))]
