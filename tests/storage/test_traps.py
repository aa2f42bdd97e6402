"""The traps of OpenDAL's Python binding, each with what shows that it does not snap here."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import opendal
import pytest
import stamina.instrumentation
from opendal import exceptions

from bdr.errors import (
    BinaryStorageError,
    ConfigError,
    OpenDalError,
    OperationError,
    StorageFull,
    StorageUnavailable,
)
from bdr.settings import BinaryStorageConfig
from bdr.storage import OpenDalStorage, StoredObject, open_storage
from bdr.storage.translate import Translator
from tests.fixtures.proxy import MakeProxy, TcpProxy
from tests.fixtures.storages import MakeStorageConfig, S3Server, running_redis
from tests.storage.conftest import MakeStorage, OpenStorage
from tests.storage.helpers import as_argument, files_below, redis_command, root_of, run_python, until
from tests.storage.programs import EXIT_AT_ONCE, FORKS, FULL

MiB = 1024 * 1024
CONSTRUCTORS = [
    found for found in vars(exceptions).values() if isinstance(found, type) and issubclass(found, Exception)
]


@contextmanager
def counted_retries() -> Iterator[list[str]]:
    seen: list[str] = []
    hooks = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: seen.append(str(details.caused_by))])
    try:
        yield seen
    finally:
        stamina.instrumentation.set_on_retry_hooks(hooks)


def proxied(config: BinaryStorageConfig, through: TcpProxy) -> BinaryStorageConfig:
    endpoint = f"{config.config['endpoint'].partition('://')[0]}://{through.host}:{through.port}"
    return config.model_copy(update={"config": config.config | {"endpoint": endpoint}})


# 1
@pytest.mark.parametrize(("kind", "runs"), [("fs", 50), ("s3", 10)])
async def test_an_interpreter_that_exits_at_once_does_not_abort(
    make_storage_config: MakeStorageConfig, kind: str, runs: int
) -> None:
    argument = as_argument(make_storage_config(kind))
    at_once = asyncio.Semaphore(os.cpu_count() or 1)

    async def run(number: int) -> tuple[int, str, str]:
        async with at_once:
            return await run_python(EXIT_AT_ONCE, argument, str(number))

    assert set(await asyncio.gather(*map(run, range(runs)))) == {(0, "", "")}


# 2: test_streaming.py, test_an_exception_of_the_source_leaves_no_object and the ones after it


# 3
async def test_a_timed_out_write_is_sent_once_and_what_lands_later_can_be_deleted(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, s3_server: S3Server, proxy: MakeProxy
) -> None:
    through = await proxy(s3_server.host, s3_server.port)
    config = make_storage_config("s3", io_timeout="300ms")
    storage, direct = await opened(proxied(config, through)), await opened(config)
    sent: list[bytes] = []
    through.on_client_data(sent.append)
    through.pause()
    with pytest.raises(StorageUnavailable, match="timeout"):
        await storage.store("object", b"data")
    through.resume()

    async def landed() -> bool:
        return await direct.exists("object")

    await until(landed)
    assert b"".join(sent).count(b"PUT /") == 1
    await storage.delete("object")
    assert not await direct.exists("object")


@pytest.mark.parametrize("kind", ["s3", "redis"])
async def test_a_write_whose_connection_is_lost_is_not_repeated(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, proxy: MakeProxy, kind: str
) -> None:
    config = make_storage_config(kind)
    port = int(config.config["endpoint"].rpartition(":")[2])
    through = await proxy("127.0.0.1", port)
    storage = await opened(proxied(config, through))
    await storage.store("before", b"data")
    writes: list[bytes] = []

    def lose(data: bytes) -> None:
        if b"PUT /" in data or b"\r\nSET\r\n" in data:
            writes.append(data)
            through.cut()

    through.on_client_data(lose)
    with counted_retries() as retries, pytest.raises(StorageUnavailable, match="could not write object"):
        await storage.store("object", b"data")
    assert len(writes) == 1
    assert retries == []


@pytest.mark.parametrize("kind", ["s3", "redis"])
async def test_reads_stats_and_deletes_are_repeated_when_a_connection_is_lost(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, proxy: MakeProxy, kind: str
) -> None:
    config = make_storage_config(kind)
    through = await proxy("127.0.0.1", int(config.config["endpoint"].rpartition(":")[2]))
    storage = await opened(proxied(config, through))
    await storage.store("object", b"data")

    def lose_one(data: bytes) -> None:
        # A lost PING is only how the pool of connections finds out; the command itself must be the one that is lost.
        if b"PING" not in data:
            through.cut()
            through.on_client_data(None)

    with counted_retries() as retries:
        through.on_client_data(lose_one)
        assert await storage.retrieve("object") == b"data"
        through.on_client_data(lose_one)
        assert (await storage.get_metadata("object")).size == 4
        through.on_client_data(lose_one)
        await storage.delete("object")
        assert not await storage.exists("object")
    assert len(retries) == 3


# 4
async def test_a_cancelled_fs_write_leaves_no_file_but_at_its_own_path(make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    root = root_of(storage)
    data = bytes(MiB)
    for turns in range(12):
        write = asyncio.create_task(storage.store(f"ab/object-{turns}", data))
        for _ in range(turns):
            await asyncio.sleep(0)
        write.cancel()
        await asyncio.wait({write})
    expected = {root / f"ab/object-{turns}" for turns in range(12)}
    assert set(files_below(root)) <= expected


# 5
async def test_atomic_write_dir_is_refused_and_a_path_has_one_winner(
    make_storage: MakeStorage, opened: OpenStorage, make_storage_config: MakeStorageConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'atomic_write_dir'.*two writers"):
        await opened(make_storage_config("fs", config={"atomic_write_dir": str(tmp_path)}))
    storage = await make_storage("fs")
    for number in range(20):
        writes = [storage.store(f"object-{number}", bytes([writer])) for writer in range(8)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert sum(isinstance(result, StoredObject) for result in results) == 1
        assert sum(isinstance(result, OperationError) for result in results) == 7


# 6
@pytest.mark.parametrize("raised", CONSTRUCTORS)
def test_every_exception_of_opendal_becomes_one_of_bdr(raised: Callable[[str], Exception]) -> None:
    name = getattr(raised, "__name__", "")
    translated = Translator("main", "memory:1", local=False)
    seen = pytest.raises(BinaryStorageError, match="could not read object in storage 'main' at memory:1")
    with seen, translated("read", "object"):
        raise raised(f"{name} (permanent) at read => something")
    assert len(CONSTRUCTORS) == 14


# 7
async def test_an_error_inside_an_open_file_is_translated_too(tmp_path: Path) -> None:
    code, output, errors = await run_python(FULL, str(tmp_path / "root"))
    assert (code, errors) == (0, "")
    first, second, there = output.splitlines()
    assert first.startswith("StorageFull could not write one in storage 'main'")
    assert second.startswith("StorageFull could not write many in storage 'main'")
    assert there == "False"


# 8 and 9: test_paths.py


# 10
async def test_a_delete_takes_one_object_and_not_what_begins_with_its_path(storage: OpenDalStorage) -> None:
    neighbours = ["pre-b", "prefix/b", "pre.d/c"]
    for path in ("pre", *neighbours):
        await storage.store(path, b"data")
    await storage.delete("pre")
    assert not await storage.exists("pre")
    assert all([await storage.exists(path) for path in neighbours])


# 11
async def test_a_forked_process_is_told_so_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    code, output, errors = await run_python(FORKS, str(tmp_path))
    assert (code, errors) == (0, "")
    old, new, ended = output.splitlines()
    assert old.startswith("old: this process was forked from one that had opened a storage")
    assert new.startswith("new: this process was forked")
    assert ended == "child ended with 0"
    assert time.monotonic() - started < 5


# 12
async def test_a_call_starts_when_it_is_awaited_and_fits_a_task_group(storage: OpenDalStorage) -> None:
    never_awaited = storage.store("object", b"data")
    assert not await storage.exists("object")
    never_awaited.close()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(storage.store(f"object-{number}", b"data")) for number in range(3)]
    assert [task.result().size for task in tasks] == [4, 4, 4]


# 13
async def test_the_database_in_a_redis_url_is_used(opened: OpenStorage, make_storage_config: MakeStorageConfig) -> None:
    config = make_storage_config("redis")
    in_url = config.model_copy(update={"config": {"endpoint": config.config["endpoint"] + "/5"}})
    storage = await opened(in_url)
    await storage.store("object", b"data")
    as_option = await opened(config.model_copy(update={"config": config.config | {"db": 5}}))
    assert await as_option.retrieve("object") == b"data"
    assert as_option.fingerprint == storage.fingerprint
    assert not await (await opened(config)).exists("object")


async def test_the_password_in_a_redis_url_is_used_and_never_shown(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--requirepass", "s:cr/t") as server:
        url = f"redis://:s%3Acr%2Ft@{server.host}:{server.port}/2"
        config = BinaryStorageConfig(storage_type="redis", config={"endpoint": url})
        storage = await open_storage(config, name="main")
        await storage.store("object", b"data")
        assert storage.location == f"redis://{server.host}:{server.port}/2"
        without = config.model_copy(update={"config": {"endpoint": server.endpoint}})
        refused = await open_storage(without, name="main")
        with pytest.raises(PermissionError, match="Authentication required"):
            await refused.exists("object")
        await storage.close()
        await refused.close()


# 14
async def test_open_streams_do_not_hold_up_other_calls(make_storage: MakeStorage) -> None:
    storage = await make_storage("s3", concurrency=2)
    gate, started = asyncio.Event(), asyncio.Semaphore(0)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(MiB)
        started.release()
        await gate.wait()
        yield b"end"

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        uploads = [group.create_task(storage.store_stream(f"stream-{number}", chunks())) for number in range(5)]
        for _ in uploads:
            await started.acquire()
        await storage.store("object", b"data")
        assert await storage.retrieve("object") == b"data"
        gate.set()
    assert {upload.result().size for upload in uploads} == {9 * MiB + 3}


# 15
async def test_errors_that_stay_are_not_retried(tmp_path: Path, make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    root = root_of(storage)
    await storage.store("ab", b"a file where a folder should be")
    (root / "folder").mkdir()
    with counted_retries() as retries:
        for call in (storage.store("ab/object", b""), storage.retrieve("ab/object"), storage.retrieve("folder")):
            with pytest.raises(BinaryStorageError):
                await call
    assert retries == []


async def test_a_full_or_misused_redis_is_not_retried(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--maxmemory", "3mb") as server, counted_retries() as retries:
        config = BinaryStorageConfig(storage_type="redis", config={"endpoint": server.endpoint})
        storage = await open_storage(config, name="main")
        await redis_command(server, "LPUSH list x")
        with pytest.raises(OpenDalError, match="WRONGTYPE"):
            await storage.retrieve("list")
        with pytest.raises(StorageFull, match="OOM"):
            await storage.store("object", bytes(8 * MiB))
        await storage.close()
    assert retries == []


def test_the_pinned_binding_is_the_one_that_was_measured() -> None:
    assert opendal.__version__ == "0.47.12"
