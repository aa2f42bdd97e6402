"""Many at once on one reference: callers of one process, and processes of one catalog."""

import asyncio
import json

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig, FileNotFound, NotReferenced
from tests.lifecycle.support import count_of
from tests.storage.helpers import as_argument, run_python

HAMMER = """
import random
import bdr

async def one(binary, key, chance):
    # Never the last one: an engine only gives back what it has taken.
    taken = 0
    for _ in range(25):
        if taken and chance.random() < 0.4:
            await binary.release_reference(key)
            taken -= 1
        else:
            await binary.register_reference(key)
            taken += 1
    return taken

async def main(url, storage, key, seed):
    chance = random.Random(seed)
    async with bdr.connect(database_url=url, storage=bdr.BinaryStorageConfig(**json.loads(storage))) as binary:
        print(sum(await asyncio.gather(*(one(binary, key, chance) for _ in range(8)))))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_three_processes_hammer_one_reference_and_its_count_is_exact(
    binary: BinaryDataLifecycleManager, database_url: str, fs_config: BinaryStorageConfig
) -> None:
    key = (await binary.store_data(b"x")).file_key
    ends = await asyncio.gather(
        *(run_python(HAMMER, database_url, as_argument(fs_config), key, seed) for seed in "123")
    )
    assert [(code, errors) for code, _, errors in ends] == [(0, "")] * 3
    taken = [json.loads(output) for _, output, _ in ends]
    assert all(taken)
    assert await count_of(binary, key) == 1 + sum(taken)


async def test_64_callers_of_one_process_hammer_one_reference_and_each_gets_a_count_of_its_own(
    binary: BinaryDataLifecycleManager,
) -> None:
    key = (await binary.store_data(b"x")).file_key
    counts = await asyncio.gather(*(binary.register_reference(key) for _ in range(64)))
    assert sorted(counts) == list(range(2, 66))

    async def caller(number: int) -> None:
        verb = binary.release_reference if number % 2 else binary.register_reference
        for _ in range(5):
            await verb(key)

    await asyncio.gather(*(caller(number) for number in range(64)))
    assert await count_of(binary, key) == 65
    counts = await asyncio.gather(*(binary.release_reference(key) for _ in range(65)))
    assert sorted(counts) == list(range(65))


async def test_of_many_who_release_the_last_count_one_does(binary: BinaryDataLifecycleManager) -> None:
    key = (await binary.store_data(b"x")).file_key
    ends = await asyncio.gather(*(binary.release_reference(key) for _ in range(32)), return_exceptions=True)
    assert sorted(map(type, ends), key=str) == sorted([int, *[NotReferenced] * 31], key=str)
    assert await count_of(binary, key) == 0


async def test_a_cleanup_and_a_registration_at_once_leave_one_winner(binary: BinaryDataLifecycleManager) -> None:
    for _ in range(30):
        key = (await binary.store_data(b"x")).file_key
        await binary.release_reference(key)
        cleaned, registered = await asyncio.gather(
            binary.cleanup_data(key), binary.register_reference(key), return_exceptions=True
        )
        if cleaned is True:
            assert isinstance(registered, FileNotFound)
            assert await count_of(binary, key) is None
        else:
            assert (cleaned, registered) == (False, 1)
            assert await binary.get_data(key) == b"x"


async def test_of_many_who_delete_a_reference_one_does(binary: BinaryDataLifecycleManager) -> None:
    key = (await binary.store_data(b"x")).file_key
    ends = await asyncio.gather(*(binary.delete_data(key) for _ in range(16)), return_exceptions=True)
    assert sum(end is None for end in ends) == 1
    assert sum(isinstance(end, FileNotFound) for end in ends) == 15
