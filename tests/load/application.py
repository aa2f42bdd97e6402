"""An application that stores, streams and reads until SIGTERM: `python -m tests.load.application HOW URL FOLDER`.

A line goes to standard output for each thing that was acknowledged to it. HOW it ends is up to the application: it
leaves the connection while its calls are under way, or it is cancelled with all of them.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import bdr
from bdr import BinaryDataLifecycleManager

CALLERS = 8
CHUNK = bytes(200_000)
CHUNKS = 25


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(CHUNKS):
        yield CHUNK
        await asyncio.sleep(0)


async def store(binary: BinaryDataLifecycleManager) -> None:
    while True:
        stored = await binary.store_data(b"small")
        say("stored", stored.file_key)
        await binary.register_reference(stored.file_key)
        say("registered", stored.file_key)


async def stream(binary: BinaryDataLifecycleManager) -> None:
    while True:
        stored = await binary.store_stream(chunks())
        say("stored", stored.file_key)
        async with binary.open(stored.file_key) as reader:
            async for _ in reader:
                await asyncio.sleep(0)


async def told(call: "asyncio.Future[None]") -> None:
    """What becomes of a call that was under way is an error of bdr's, or a cancellation; nothing else."""
    with suppress(bdr.BinaryStorageError, asyncio.CancelledError):
        await call


async def work(how: str, url: str, root: str) -> None:
    stopping = asyncio.Event()
    storage = bdr.BinaryStorageConfig(storage_type="fs", root=root)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    async with bdr.connect(url, storage) as binary:
        calls = [asyncio.ensure_future(act(binary)) for _ in range(CALLERS) for act in (store, stream)]
        await stopping.wait()
        if how == "cancel":
            for call in calls:
                call.cancel()
            await asyncio.gather(*map(told, calls))
    await asyncio.gather(*map(told, calls))
    say("ended", how)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
