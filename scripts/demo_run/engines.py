"""The processes of the demo, each an engine of its own: `python -m scripts.demo_run.engines ROLE NAME`.

On standard input comes a request a line, on standard output goes an answer a line, both JSON; when the input ends, the
process does. Everything that uses bdr as an engine would is here.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import bdr

# Requests that one engine works on at the same time.
AT_ONCE = 8

Message = dict[str, Any]


async def store(binary: bdr.BinaryDataLifecycleManager, request: Message) -> Message:
    """Store one file, or a stream; the answer is its reference, and the SHA-256 of what it was made from."""
    if "stream" in request:
        # Brings the libraries that make documents along, which the other processes can do without.
        from scripts.documents import big_stream

        digest = hashlib.sha256()
        chunks = hashed(big_stream(request["stream"]), digest)
        metadata = bdr.BinaryDataMetadata(file_name=request["name"], file_size=request["stream"])
        reference = await binary.store_stream(chunks, metadata, on_progress=reporter())
        sha256 = digest.hexdigest()
    else:
        try:
            sha256 = await asyncio.to_thread(sha256_of, Path(request["path"]))
        except OSError as error:
            return {"left_out": f"{request['path']}: {error.strerror}"}
        metadata = bdr.BinaryDataMetadata(file_name=request["name"])
        reference = await binary.store_file(request["path"], metadata, on_progress=reporter())
    return {"reference": reference.model_dump(mode="json"), "sha256": sha256}


async def read(binary: bdr.BinaryDataLifecycleManager, request: Message) -> Message:
    """Register one more use of a file that is known by nothing but its reference, and read it."""
    reference = bdr.BinaryDataReference.model_validate(request)
    count = await binary.register_reference(reference.file_key)
    digest = hashlib.sha256()
    async with binary.open(reference.file_key, on_progress=reporter()) as reader:
        async for piece in reader:
            digest.update(piece)
    return {"file_key": reference.file_key, "counts": [count], "sha256": digest.hexdigest()}


async def release(binary: bdr.BinaryDataLifecycleManager, request: Message) -> Message:
    """Release a file for the engine that stored it, then for the one that registered it."""
    reference = bdr.BinaryDataReference.model_validate(request)
    counts = [await binary.release_reference(reference.file_key) for _ in range(2)]
    return {"file_key": reference.file_key, "counts": counts}


ROLES: dict[str, Callable[[bdr.BinaryDataLifecycleManager, Message], Awaitable[Message]]] = {
    "store": store,
    "read": read,
    "release": release,
}


async def engine(role: str, name: str) -> None:
    """Join the catalog as one engine and answer requests; the settings are those that BDR_CONFIG names."""
    async with bdr.connect(instance=bdr.InstanceConfig(name=name)) as binary:
        if role == "reap":
            # It works by itself from here on, and is asked for nothing.
            await binary.start_cleanup_task()
        say({"ready": os.getpid()})
        slots = asyncio.Semaphore(AT_ONCE)

        async def answer(request: Message) -> None:
            try:
                say(await ROLES[role](binary, request))
            except bdr.BinaryStorageError as error:
                say({"failed": str(error)})
            finally:
                slots.release()

        async with asyncio.TaskGroup() as answers:
            async for line in await standard_input():
                await slots.acquire()
                answers.create_task(answer(json.loads(line)))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as it lies on the disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def hashed(chunks: AsyncIterator[bytes], digest: "hashlib._Hash") -> AsyncIterator[bytes]:
    """The chunks, each added to the digest."""
    async for chunk in chunks:
        digest.update(chunk)
        yield chunk


def reporter() -> Callable[[bdr.OperationProgress], None]:
    """Says how many bytes of one file have passed since the last time."""
    before = 0

    def report(progress: bdr.OperationProgress) -> None:
        nonlocal before
        say({"bytes": progress.processed_bytes - before})
        before = progress.processed_bytes

    return report


def say(message: Message) -> None:
    """Send one line to the demo."""
    print(json.dumps(message), flush=True)


async def standard_input() -> asyncio.StreamReader:
    """Standard input, a pipe from the demo, to be read without a thread."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    try:
        asyncio.run(engine(sys.argv[1], sys.argv[2]))
    except bdr.BinaryStorageError as error:
        say({"failed": str(error)})
        sys.exit(1)
