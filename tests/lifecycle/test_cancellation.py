"""Callers cancelled at any instant: what they are told is true, and nothing is left without an owner."""

import asyncio
import random
from collections.abc import Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bdr import BinaryDataLifecycleManager, DatabaseConfig, LifecycleCleanupConfig, OutcomeUnknown
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig
from tests.guarantees import violations
from tests.lifecycle.ledger import Ledger
from tests.lifecycle.support import (
    HeldSource,
    blob_states,
    change,
    count_of,
    keys_of,
    make_due,
    rows,
    until_idle,
    until_waiting,
)
from tests.storage.helpers import until

Binary = BinaryDataLifecycleManager
EAGER = LifecycleCleanupConfig.model_validate({"zero_ref_retention": 0})
CALLERS = 400
AT_ONCE = 16


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
    assert ledger.allows_keys(await keys_of(binary) - {key})
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
    assert ledger.allows_keys(await keys_of(binary))


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


async def test_a_release_cancelled_before_its_cleanup_begins_is_told_as_unknown(
    binary: Binary, connect: Connect, caller: AsyncEngine
) -> None:
    narrow = await connect(lifecycle=EAGER, database=DatabaseConfig(pool_size=1))
    key = (await narrow.store_data(b"x")).file_key
    taken = asyncio.Event()

    async def take_the_connection() -> None:
        async with narrow.engine.database.reading():
            taken.set()
            await asyncio.Event().wait()

    async with caller.begin() as own:
        await own.execute(text("SELECT FROM bdr.binary_data_reference FOR UPDATE"))
        releasing = asyncio.create_task(narrow.release_reference(key))
        await until_waiting(binary)
        taking = asyncio.create_task(take_the_connection())
    await taken.wait()
    assert await count_of(binary, key) == 0
    releasing.cancel()
    with pytest.raises(OutcomeUnknown, match="Releasing"):
        await releasing
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert (await binary.reap()).references == 1


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
