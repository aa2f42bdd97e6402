"""What was acknowledged survives the end of an engine and of the database, at any instant; the rest happened or not."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack
from datetime import timedelta

import bdr
from bdr import BinaryDataLifecycleManager, BinaryStorageConfig, ReaperConfig
from tests.fixtures.engines import Connect
from tests.fixtures.postgres import PostgresServer
from tests.guarantees import objects_in, violations
from tests.lifecycle.ledger import Ledger
from tests.lifecycle.support import blob_states, count_of, keys_of, make_due, until_quiet
from tests.storage.helpers import PROJECT, as_argument

Binary = BinaryDataLifecycleManager
WORKERS = 8
ENOUGH = 120

# Tells of each count and each key as soon as it was acknowledged, until it is killed.
BUSY = """
import asyncio, json, sys
import bdr

async def work(binary, key):
    while True:
        await binary.register_reference(key)
        print("counted", flush=True)
        print((await binary.store_data(b"x" * 20_000)).file_key, flush=True)

async def main(url, storage, key):
    async with bdr.connect(database_url=url, storage=bdr.BinaryStorageConfig(**json.loads(storage))) as binary:
        await asyncio.gather(*(work(binary, key) for _ in range(8)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_what_was_acknowledged_survives_kill_9_of_its_engine(
    binary: Binary, connect: Connect, database_url: str, fs_config: BinaryStorageConfig
) -> None:
    key = (await binary.store_data(b"x")).file_key
    arguments = (database_url, as_argument(fs_config), key)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUSY, *arguments, stdout=PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)}
    )
    assert process.stdout is not None
    told = [await process.stdout.readline() for _ in range(ENOUGH)]
    process.send_signal(signal.SIGKILL)
    told += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    await until_quiet(binary)
    # A line that was cut off was acknowledged too, but cannot be read.
    lines = [line.decode().strip() for line in told if line.endswith(b"\n")]
    count, stored = await count_of(binary, key), await keys_of(binary) - {key}
    acknowledged = {line for line in lines if line != "counted"}
    assert count is not None
    assert 0 <= count - 1 - lines.count("counted") <= WORKERS
    assert acknowledged <= stored
    assert len(stored) <= len(acknowledged) + WORKERS
    assert await violations(binary.engine.database, binary.engine.storages) == []
    reaping = await connect(reaper=ReaperConfig(write_grace=timedelta(0)))
    await make_due(binary)
    await reaping.reap()
    assert await blob_states(binary) == ["live"] * (len(stored) + 1)
    assert len(await objects_in(binary.engine.storage("main"))) == len(stored) + 1


async def test_what_was_acknowledged_survives_an_immediate_stop_of_the_database(
    private_postgres: PostgresServer, fs_config: BinaryStorageConfig
) -> None:
    url = private_postgres.url(await private_postgres.create_database(await private_postgres.migrated_template()))
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        binary = await stack.enter_async_context(bdr.connect(database_url=url, storage=fs_config))
        key = (await binary.store_data(b"x")).file_key
        busy = asyncio.Event()

        async def work() -> None:
            while not (ledger.told["not counted"] or ledger.told["not stored"] or ledger.doubtful or ledger.maybe):
                await ledger.register(binary, key)
                await ledger.store(binary, 20_000)
                if ledger.told.total() >= ENOUGH:
                    busy.set()

        workers = [asyncio.create_task(work()) for _ in range(WORKERS)]
        await busy.wait()
        await asyncio.to_thread(private_postgres.stop, "immediate")
        await asyncio.gather(*workers)
        await asyncio.to_thread(private_postgres.start)
        count = await count_of(binary, key)
        assert count is not None
        assert ledger.allows(count - 1), (ledger.counted, ledger.doubtful, count)
        assert ledger.allows_keys(await keys_of(binary) - {key})
        assert await violations(binary.engine.database, binary.engine.storages) == []
        # The same engine goes on.
        assert await binary.register_reference(key) == count + 1
