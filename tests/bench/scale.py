"""Large catalogs: what a call costs as they grow, and how large they are."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import bdr
from tests.bench import filled
from tests.bench.counting import our_steps
from tests.bench.files import store_many
from tests.bench.ground import Catalog, Ground
from tests.bench.measure import alternating, run_for
from tests.bench.reaping import reap_all
from tests.bench.sides import CALLERS
from tests.bench.verdict import Comparison, at_most

# Of every catalog as many references are used, evenly spread: what grows is the catalog, not what is worked on.
_USED: Final = 10_000
_GROWING_ROUNDS: Final = 2
_MOST_ROUNDS: Final = 5
_WARM: Final = """
UPDATE bdr.binary_data_reference SET last_access_at = last_access_at WHERE file_key = ANY ($1::text[]) RETURNING 1
"""
# What a stored reference needs; the records of operations go after their own retention.
_SIZE: Final = """
SELECT sum(pg_total_relation_size(one))::float8 FROM unnest(
    ARRAY['bdr.blob', 'bdr.binary_data_reference']::regclass[]) one
"""
_VACUUMS: Final = 5
_MICRO: Final = 1_000_000


class Used:
    """A catalog of some size, and the engine that uses it."""

    def __init__(self, catalog: Catalog, binary: bdr.BinaryDataLifecycleManager, ground: Ground) -> None:
        self.references = 0
        self._catalog = catalog
        self._binary = binary
        self._sizes = ground.sizes
        self._keys: list[str] = []

    async def grow(self, references: int) -> None:
        """Fill it up to so many references; every page that is used has been written once since the checkpoint."""
        await filled.fill(self._catalog, filled.HELD, range(self.references + 1, references + 1))
        await filled.settle(self._catalog)
        self.references = references
        self._keys = [filled.key(filled.HELD, number) for number in self._spread(min(_USED, references))]
        await self._catalog.fetchval(_WARM, self._keys)

    async def count(self) -> float:
        """Microseconds of one register or release, of many callers."""
        run = await run_for(self._sizes.seconds, CALLERS, our_steps(self._keys, self._binary))
        return _MICRO / run.rate

    async def reap(self) -> float:
        """Microseconds of one expired reference, of a pass over many; there are no objects to delete."""
        numbers = self._spread(self._sizes.reaped)
        await filled.fill(self._catalog, filled.EXPIRED, numbers)
        return await reap_all(self._binary, len(numbers)) / len(numbers) * _MICRO

    def _spread(self, number: int) -> range:
        return range(1, self.references + 1, self.references // number)[:number]


async def scale(ground: Ground) -> list[Comparison]:
    """A catalog that stays small beside one that grows."""
    smallest, *larger = ground.sizes.catalogs
    compared: list[Comparison] = []
    async with (
        ground.catalog() as small_catalog,
        ground.catalog() as large_catalog,
        small_catalog.connect() as small_binary,
        large_catalog.connect() as large_binary,
    ):
        small, large = Used(small_catalog, small_binary, ground), Used(large_catalog, large_binary, ground)
        await small.grow(smallest)
        for references in larger:
            await large.grow(references)
            is_last = references == larger[-1]
            rounds = min(_MOST_ROUNDS, ground.sizes.rounds) if is_last else _GROWING_ROUNDS
            compared = [
                await _compare(ground, "register and release", small, large, Used.count, rounds),
                await _compare(ground, "reap", small, large, Used.reap, rounds),
            ]
    return compared


async def _compare(
    ground: Ground, work: str, small: Used, large: Used, cost: Callable[[Used], Awaitable[float]], rounds: int
) -> Comparison:
    costs = await alternating(rounds, {"large": lambda: cost(large), "small": lambda: cost(small)})
    against = f"{small.references:,} references"
    compared = Comparison(
        "scale",
        f"{work}, cost at {large.references:,} references",
        against,
        "µs",
        at_most(1.5),
        costs["large"],
        costs["small"],
    )
    curve = ground.curves.catalogs.setdefault(work, [(small.references, 1.0)])
    curve.append((large.references, compared.figure))
    return compared


async def size(ground: Ground) -> list[Comparison]:
    """Bytes of rows and indexes for each reference, after real stores: what a catalog takes up that goes on.

    A store leaves the `pending` version of its blob's row behind, whose space the next ones use once VACUUM has been
    there. Autovacuum comes when a fifth of a table is such; it looks once a minute, in which all is over here.
    """
    number = ground.sizes.sized
    metadata = bdr.BinaryDataMetadata(
        file_name="report.pdf",
        mime_type="application/pdf",
        labels={"workflow": "invoices", "execution": "81726", "node": "extract", "port": "out"},
    )
    async with ground.catalog() as catalog:
        async with catalog.connect() as binary:
            for _ in range(_VACUUMS):
                await store_many(binary, number // _VACUUMS, metadata)
                await catalog.execute("VACUUM bdr.blob", "VACUUM bdr.binary_data_reference")
        found: Any = await catalog.fetchval(_SIZE)
    work = f"catalog size per reference, of {number:,} stored ones"
    return [Comparison("size", work, "-", "bytes", at_most(700), [found / number])]
