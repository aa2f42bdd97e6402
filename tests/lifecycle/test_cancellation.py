"""Callers cancelled at any instant: what they are told is true, and nothing is left without an owner."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest

from bdr import BinaryDataLifecycleManager, LifecycleCleanupConfig, OutcomeUnknown
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig
from tests.guarantees import violations
from tests.lifecycle.support import HeldSource, blob_states, change, count_of, make_due, rows, until_idle
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
EAGER = LifecycleCleanupConfig.model_validate({"zero_ref_retention": 0})
CALLERS = 400
AT_ONCE = 16


class Ledger:
    """What callers were told.

    Attributes:
        counted: the sum of the counts that were acknowledged.
        doubtful: the counts that may have been taken besides.
        stored, maybe: keys of stores that were acknowledged, and of those that may have happened.
        told: how many were told what.
    """

    def __init__(self) -> None:
        self.counted = 0
        self.doubtful: list[int] = []
        self.stored: set[str] = set()
        self.maybe: set[str] = set()
        self.told: Counter[str] = Counter()

    async def register(self, binary: Binary, key: str) -> None:
        await self._count(binary.register_reference(key), +1, key)

    async def release(self, binary: Binary, key: str) -> None:
        await self._count(binary.release_reference(key), -1, key)

    async def store(self, binary: Binary, size: int) -> None:
        try:
            self.stored.add((await binary.store_data(b"x" * size)).file_key)
            self.told["stored"] += 1
        except OutcomeUnknown as unknown:
            self.maybe.update(unknown.keys)
            self.told["store unknown"] += 1
        except asyncio.CancelledError:
            self.told["store cancelled"] += 1

    async def _count(self, counting: Coroutine[Any, Any, int], change: int, key: str) -> None:
        try:
            await counting
            self.counted += change
            self.told["counted"] += 1
        except OutcomeUnknown as unknown:
            self.doubtful.append(change)
            self.told["count unknown"] += unknown.keys == (key,)
        except asyncio.CancelledError:
            self.told["count cancelled"] += 1

    def allows(self, count: int) -> bool:
        """Whether a count can be right: every doubtful one was taken, or it was not."""
        least = sum(one for one in self.doubtful if one < 0)
        most = sum(one for one in self.doubtful if one > 0)
        return least <= count - self.counted <= most


async def run_and_cancel_at_random(works: Iterable[Coroutine[Any, Any, None]], chance: random.Random) -> None:
    """Run them a few at a time; whenever one ends, another one that is under way may be cancelled, even twice."""
    waiting, active = iter(works), list[asyncio.Task[None]]()
    while True:
        active += [asyncio.create_task(work) for work in islice(waiting, AT_ONCE - len(active))]
        if not active:
            return
        await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
        for ended in [task for task in active if task.done() and not task.cancelled()]:
            ended.result()
        active = [task for task in active if not task.done()]
        if active and chance.random() < 0.6:
            chance.choice(active).cancel()


@pytest.mark.both_majors
async def test_what_callers_cancelled_at_random_are_told_is_true(binary: Binary, connect: Connect) -> None:
    other = await connect()
    chance, ledger = random.Random(4711), Ledger()
    key = (await binary.store_data(b"x")).file_key
    await change(binary, "UPDATE bdr.binary_data_reference SET ref_count = 500")

    def works() -> Iterator[Coroutine[Any, Any, None]]:
        for _ in range(CALLERS):
            engine = chance.choice([binary, other])
            act = chance.choice([ledger.register, ledger.release])
            yield act(engine, key) if chance.random() < 0.5 else ledger.store(engine, chance.choice([0, 100, 300_000]))

    await run_and_cancel_at_random(works(), chance)
    await until_idle(binary, other)
    count = await count_of(binary, key)
    assert count is not None
    assert ledger.allows(count - 500), (ledger.counted, ledger.doubtful, count)
    there = {found for (found,) in await rows(binary, "SELECT file_key FROM bdr.binary_data_reference")} - {key}
    assert ledger.stored <= there <= ledger.stored | ledger.maybe
    acknowledged = ledger.told["counted"] + ledger.told["stored"]
    assert 0 < acknowledged < ledger.told.total(), ledger.told
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_counts_are_exact_when_no_outcome_is_unknown(binary: Binary) -> None:
    ledger = Ledger()
    key = (await binary.store_data(b"x")).file_key
    tasks = [asyncio.create_task(ledger.register(binary, key)) for _ in range(100)]
    for task in tasks[::2]:
        # Before it has begun: a plain cancellation says that nothing was counted.
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ledger.doubtful == []
    assert await count_of(binary, key) == 1 + ledger.counted == 51


@pytest.mark.parametrize("step", range(0, 60, 4))
async def test_a_store_cancelled_after_any_step_has_an_owner_and_a_true_answer(binary: Binary, step: int) -> None:
    ledger = Ledger()
    task = asyncio.create_task(ledger.store(binary, 100_000))
    for _ in range(step):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until_idle(binary)
    there = {found for (found,) in await rows(binary, "SELECT file_key FROM bdr.binary_data_reference")}
    assert ledger.stored <= there <= ledger.stored | ledger.maybe


async def test_a_store_cancelled_while_it_writes_leaves_its_row_and_its_record(binary: Binary) -> None:
    source = HeldSource(b"x" * 2_000_000, b"y")
    task = asyncio.create_task(binary.store_stream(source.chunks()))
    await source.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await blob_states(binary) == ["deleting"]
    # As long as a write may still land, the row stays.
    assert await rows(binary, "SELECT next_attempt_at > now() + interval '14 minutes' FROM bdr.blob") == [(True,)]
    assert await rows(binary, "SELECT status FROM bdr.operation") == [("cancelled",)]
    await make_due(binary)
    assert (await binary.reap()).blobs == 1


async def test_a_delete_cancelled_while_its_storage_is_slow_is_told_as_unknown(
    connect: Connect, make_storage_config: MakeStorageConfig, proxy: MakeProxy
) -> None:
    config = make_storage_config("redis")
    through = await proxy("127.0.0.1", int(config.config["endpoint"].rpartition(":")[2]))
    moved = config.config | {"endpoint": f"redis://{through.host}:{through.port}"}
    binary = await connect(storage=config.model_copy(update={"config": moved}), lifecycle=EAGER)
    for verb in (binary.release_reference, binary.delete_data):
        key = (await binary.store_data(b"x")).file_key
        through.pause()
        task = asyncio.ensure_future(verb(key))

        async def is_gone(key: str = key) -> bool:
            return await count_of(binary, key) is None

        await until(is_gone)
        task.cancel()
        with pytest.raises(OutcomeUnknown) as caught:
            await task
        assert (caught.value.keys, caught.value.cancelled) == ((key,), True)
        through.resume()
    await until_idle(binary)
    assert await blob_states(binary) == ["deleting", "deleting"]
    await make_due(binary)
    assert (await binary.reap()).blobs == 2
