"""Streamed writes that do not end well, pieces, and what a gigabyte costs."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdr.errors import InvalidArgument
from bdr.storage import OpenDalStorage
from bdr.storage.pieces import LARGEST_PIECE, SMALLEST_PIECE, pieces_of
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, S3Server
from tests.storage.conftest import MakeStorage, OpenStorage
from tests.storage.helpers import as_argument, files_below, root_of, run_python, until

MiB = 1024 * 1024
GIB_IN_64_MIB = """
import hashlib, re

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) // 1024

async def chunks(block, count):
    for number in range(count):
        yield number.to_bytes(8) + block

async def main():
    storage = await open_storage(BinaryStorageConfig(**json.loads(sys.argv[1])), name="main")
    await storage.store("small", bytes(100_000))
    await storage.retrieve("small")
    idle, size = peak(), 1 << 30
    stored = await storage.store_stream("big", chunks(os.urandom((1 << 20) - 8), 1 << 10))
    written, digest = peak(), hashlib.sha256()
    for offset in range(0, size, 4 << 20):
        digest.update(await storage.retrieve_range("big", offset, 4 << 20))
    assert stored.size == size and stored.checksum == digest.digest()
    await storage.delete("big")
    await storage.close()
    print(json.dumps({"idle": idle, "write": written - idle, "read": peak() - idle}))

asyncio.run(main())
"""


class SourceError(Exception):
    """What a caller's stream raises."""


async def breaking(after: int) -> AsyncIterator[bytes]:
    for _ in range(after):
        yield bytes(MiB)
    raise SourceError


@pytest.mark.parametrize("after", [0, 1, 30])
async def test_an_exception_of_the_source_leaves_no_object(storage: OpenDalStorage, after: int) -> None:
    with pytest.raises(SourceError):
        await storage.store_stream("ab/object", breaking(after))
    assert not await storage.exists("ab/object")
    await storage.store("ab/object", b"and the path is still free")


async def test_an_exception_of_the_source_leaves_no_parts(make_storage: MakeStorage, s3_server: S3Server) -> None:
    left_before = s3_server.pending_uploads()
    storage = await make_storage("s3")
    uploads: list[list[str]] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(MiB)
        uploads.append(s3_server.pending_uploads())
        raise SourceError

    with pytest.raises(SourceError):
        await storage.store_stream("object", chunks())
    assert len(uploads[0]) == len(left_before) + 1
    assert s3_server.pending_uploads() == left_before


async def test_a_piece_that_could_not_be_hashed_fails_the_upload(
    make_storage: MakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await make_storage("fs")
    hashed = asyncio.to_thread
    pieces = 0

    async def without_a_thread(call: Any, *arguments: Any) -> Any:
        nonlocal pieces
        pieces += len(arguments)
        if pieces == 2:
            raise RuntimeError("can't start new thread")
        return await hashed(call, *arguments)

    async def source() -> AsyncIterator[bytes]:
        for number in range(4):
            yield bytes([number]) * MiB

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "to_thread", without_a_thread)
        with pytest.raises(RuntimeError):
            await storage.store_stream("stream", source())
    assert not await storage.exists("stream")


async def test_an_exception_of_the_source_leaves_no_file(make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    with pytest.raises(SourceError):
        await storage.store_stream("ab/object", breaking(30))
    assert files_below(root_of(storage)) == []


async def test_an_exception_of_the_source_leaves_the_object_that_was_there(make_storage: MakeStorage) -> None:
    for kind in ("fs", "memory", "s3"):
        storage = await make_storage(kind)
        await storage.store("object", b"first")
        with pytest.raises(SourceError):
            await storage.store_stream("object", breaking(3))
        assert await storage.retrieve("object") == b"first"


@pytest.mark.parametrize("kind", ["fs", "s3"])
async def test_a_cancelled_stream_leaves_nothing(make_storage: MakeStorage, s3_server: S3Server, kind: str) -> None:
    left_before = s3_server.pending_uploads()
    storage = await make_storage(kind)
    waiting = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MiB)
        waiting.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(storage.store_stream("object", chunks()))
    await waiting.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert not await storage.exists("object")
    assert s3_server.pending_uploads() == left_before


@pytest.mark.parametrize("kind", ["fs", "s3"])
async def test_a_stream_cancelled_at_any_moment_leaves_nothing(
    make_storage: MakeStorage, s3_server: S3Server, kind: str
) -> None:
    left_before = s3_server.pending_uploads()
    storage = await make_storage(kind)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield bytes(MiB)

    for turns in range(0, 60, 3):
        path = f"object-{turns}"
        upload = asyncio.create_task(storage.store_stream(path, chunks()))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait({upload})
        assert await storage.exists(path) == (not upload.cancelled())
    assert s3_server.pending_uploads() == left_before


async def test_a_stream_cancelled_while_it_is_completed_leaves_nothing(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, s3_server: S3Server, proxy: MakeProxy
) -> None:
    left_before = s3_server.pending_uploads()
    through = await proxy(s3_server.host, s3_server.port)
    config = make_storage_config("s3", config={"endpoint": f"http://{through.host}:{through.port}"})
    storage = await opened(config)
    last_part = asyncio.Event()

    def hold_last_part(data: bytes) -> None:
        if b"partNumber=3" in data:
            through.pause()
            last_part.set()

    through.on_client_data(hold_last_part)
    upload = asyncio.create_task(storage.store_stream("object", _zeros(20)))
    await last_part.wait()
    upload.cancel()
    done, _ = await asyncio.wait({upload}, timeout=0.2)
    assert not done
    through.resume()
    await asyncio.wait({upload})
    assert upload.cancelled()
    assert s3_server.pending_uploads() == left_before
    assert not await storage.exists("object")


async def test_a_second_cancellation_does_not_stop_the_undoing(make_storage: MakeStorage) -> None:
    storage = await make_storage("s3")
    waiting = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MiB)
        waiting.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(storage.store_stream("object", chunks()))
    await waiting.wait()
    upload.cancel()

    async def undoing() -> bool:
        return bool(storage._undoing.tasks)

    await until(undoing)
    upload.cancel()
    await asyncio.wait({upload})
    assert upload.cancelled()
    await asyncio.wait(storage._undoing.tasks)
    assert not await storage.exists("object")


@pytest.mark.parametrize("kind", ["redis", "memory", "fs", "s3"])
async def test_an_object_larger_than_the_limit_is_refused(make_storage: MakeStorage, kind: str) -> None:
    storage = await make_storage(kind, config={"max_object_size": 10 * MiB})
    with pytest.raises(InvalidArgument, match=f"up to {10 * MiB} bytes.*max_object_size"):
        await storage.store_stream("object", _zeros(11))
    with pytest.raises(InvalidArgument, match="max_object_size"):
        await storage.store("object", bytes(10 * MiB + 1))
    assert not await storage.exists("object")
    await storage.store_stream("object", _zeros(10))


async def _zeros(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(MiB)


chunk_sizes = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 20 * MiB)), max_size=4)


@settings(deadline=None)
@given(chunk_sizes)
async def test_pieces_are_the_bytes_of_the_chunks_and_neither_small_nor_large(sizes: list[int]) -> None:
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    pieces = [piece async for piece in pieces_of(_each(chunks))]
    assert b"".join(pieces) == b"".join(chunks)
    assert all(SMALLEST_PIECE <= len(piece) <= LARGEST_PIECE for piece in pieces[:-1])
    assert all(0 < len(piece) <= LARGEST_PIECE for piece in pieces[-1:])


async def _each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("kind", ["fs", "s3"])
async def test_a_gigabyte_is_stored_and_read_in_64_mib(make_storage_config: MakeStorageConfig, kind: str) -> None:
    config = make_storage_config(kind)
    code, output, errors = await run_python(GIB_IN_64_MIB, as_argument(config))
    assert (code, errors) == (0, "")
    figures = json.loads(output)
    assert max(figures["write"], figures["read"]) < 64, figures
