"""Reaping: one pass against bare deletes, and two reapers against one."""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import bdr
from bdr.storage.deleting import Outcomes, deleted_each
from tests.bench import filled
from tests.bench.bare import BareFiles
from tests.bench.ground import Catalog, Ground
from tests.bench.measure import alternating, best, run_all
from tests.bench.verdict import Comparison, at_least
from tests.bench.workers import Answer, Go, Orders, rate_of, timed, together

DELETES: Final = "bare OpenDAL deletes at best concurrency"
_CONCURRENCIES: Final = (4, 16, 64)
_TRIED: Final = 2_000
_SLOW: Final = 0.02
# So few of a reaper's deletes at once that it waits for the storage: with more, both would wait for two cores.
_AT_ONCE: Final = 8
# Of one batch; small, so that there are many, and two reapers end at about the same time.
_BATCH: Final = 64
_MOST_ROUNDS: Final = 3


async def reap_all(binary: bdr.BinaryDataLifecycleManager, references: int) -> float:
    """One pass; gives back its seconds."""
    began = time.perf_counter()
    report = await binary.reap(confirmed=True)
    seconds = time.perf_counter() - began
    if (report.references, report.failed) != (references, 0):
        raise AssertionError(f"a pass over {references:,} references did this: {report}")
    return seconds


async def reap(ground: Ground) -> list[Comparison]:
    """Expired references and their objects, against deletes of as many objects."""
    number = ground.sizes.expired
    numbers = range(1, number + 1)
    bare_folder = ground.new_folder("bare")
    files = BareFiles(bare_folder)

    async def delete_rate(concurrency: int, some: range = numbers) -> float:
        await asyncio.to_thread(filled.lay_objects, bare_folder, filled.EXPIRED, some)
        return (await run_all([filled.path(filled.EXPIRED, one) for one in some], concurrency, files.delete)).rate

    async with ground.catalog() as catalog, catalog.connect() as binary:

        async def reap_rate() -> float:
            await filled.fill(catalog, filled.EXPIRED, numbers)
            await filled.settle(catalog)
            await asyncio.to_thread(filled.lay_objects, catalog.folder, filled.EXPIRED, numbers)
            return number / await reap_all(binary, number)

        concurrency = await best(_CONCURRENCIES, lambda one: delete_rate(one, numbers[:_TRIED]))
        sides = {"bdr": reap_rate, "floor": lambda: delete_rate(concurrency)}
        rates = await alternating(min(_MOST_ROUNDS, ground.sizes.rounds), sides)
    work, note = f"reap {number:,} expired references", f"concurrency of the floor: {concurrency}"
    return [Comparison("reap", work, DELETES, "/s", at_least(0.9), rates["bdr"], rates["floor"], note)]


async def slow_reaper(go: Go, catalog: Catalog) -> Answer:
    """One pass of a process, in which each delete of an object takes 20 ms longer."""
    async with catalog.connect(reaper=bdr.ReaperConfig(concurrency=_AT_ONCE, batch_size=_BATCH)) as binary:
        for storage in binary.engine.storages.values():
            _slow_down(storage)
        await go()
        with timed() as answer:
            answer.done = (await binary.reap(confirmed=True)).blobs
    return answer


def _slow_down(storage: Any) -> None:
    """Have it delete as a service does that is asked for each object, and takes that long for it."""
    delete = storage.delete

    async def slowly(path: str) -> None:
        await asyncio.sleep(_SLOW)
        await delete(path)

    async def delete_many(paths: Sequence[str], *, concurrency: int, patience: timedelta) -> Outcomes:
        until = time.monotonic() + patience.total_seconds()
        return await deleted_each(slowly, paths, concurrency=concurrency, until=until)

    storage.delete_many = delete_many


async def two_reapers(ground: Ground) -> list[Comparison]:
    """The same work for one process, and for two."""
    number = ground.sizes.slow
    async with ground.catalog() as catalog:
        await filled.introduce(catalog)

        async def rate(reapers: int) -> float:
            # The objects are not there: to delete one that is gone is a success, and takes as long.
            await filled.fill(catalog, filled.EXPIRED, range(1, number + 1))
            await filled.settle(catalog)
            answers = await together([Orders(slow_reaper, (catalog,))] * reapers)
            if sum(one.done for one in answers) != number:
                raise AssertionError(f"{reapers} reapers had {number:,} blobs to delete and did {answers}")
            return rate_of(answers)

        sides = {"bdr": lambda: rate(2), "floor": lambda: rate(1)}
        # Processes of their own: a round for nothing would make none of them warm.
        rates = await alternating(min(_MOST_ROUNDS, ground.sizes.rounds), sides, warm=True)
    work = f"two reapers on {number:,} references, 20 ms a delete, {_AT_ONCE} of each at once"
    return [Comparison("two-reapers", work, "one reaper", "/s", at_least(1.9), rates["bdr"], rates["floor"])]
