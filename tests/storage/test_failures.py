"""Storages that are down, slow, full, read-only, emptied or locked: the right error, in time."""

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from bdr.errors import (
    BinaryStorageError,
    ConfigError,
    Corrupt,
    IoError,
    OpenDalError,
    PermissionDenied,
    StorageFull,
    StorageUnavailable,
)
from bdr.settings import BinaryStorageConfig
from bdr.storage import StorageMarker
from bdr.storage.translate import Translator
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, S3Server, running_redis
from tests.storage.conftest import MakeStorage, OpenStorage
from tests.storage.helpers import redis_command, run_python

AS_ANOTHER_USER = """
async def main():
    # Loads what is imported late: the other user may not be allowed to read it.
    await (await open_storage(BinaryStorageConfig(storage_type="memory"), name="main")).exists("object")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    for root in sys.argv[1:]:
        try:
            storage = await open_storage(BinaryStorageConfig(storage_type="fs", root=root), name="main")
            await storage.store("ab/object", b"data")
        except PermissionError as error:
            print(type(error).__name__, error)
asyncio.run(main())
"""


async def test_a_folder_that_may_not_be_written_is_permission_denied(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0)
    places = (root, root / "below", hidden / "below")
    code, output, errors = await run_python(AS_ANOTHER_USER, *map(str, places))
    assert (code, errors) == (0, "")
    first, second, third = output.splitlines()
    assert first.startswith("PermissionDenied could not write ab/object in storage 'main' at fs:")
    assert second.startswith("PermissionDenied could not open it in storage 'main' at fs:")
    assert third.startswith("PermissionDenied could not open it in storage 'main' at fs:")


@pytest.mark.parametrize("kind", ["s3", "redis"])
async def test_a_server_that_is_down_is_unavailable(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, proxy: MakeProxy, kind: str
) -> None:
    config = make_storage_config(kind, timeout="1s", io_timeout="1s")
    through = await proxy("127.0.0.1", int(config.config["endpoint"].rpartition(":")[2]))
    endpoint = f"{'http' if kind == 's3' else 'redis'}://{through.host}:{through.port}"
    storage = await opened(config.model_copy(update={"config": config.config | {"endpoint": endpoint}}))
    await storage.store("object", b"data")
    through.stop()
    for call in (storage.retrieve("object"), storage.exists("object"), storage.delete("object")):
        with pytest.raises(StorageUnavailable, match="check that it runs"):
            await call
    with pytest.raises(ConnectionError):
        await storage.store("another", b"data")
    await through.start()
    assert await storage.retrieve("object") == b"data"


@pytest.mark.parametrize("kind", ["s3", "redis"])
async def test_a_server_that_does_not_answer_is_unavailable_in_time(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, proxy: MakeProxy, kind: str
) -> None:
    config = make_storage_config(kind, timeout="300ms", io_timeout="300ms")
    through = await proxy("127.0.0.1", int(config.config["endpoint"].rpartition(":")[2]))
    endpoint = f"{'http' if kind == 's3' else 'redis'}://{through.host}:{through.port}"
    storage = await opened(config.model_copy(update={"config": config.config | {"endpoint": endpoint}}))
    await storage.store("object", b"data")
    through.pause()
    for call in (storage.retrieve("object"), storage.exists("object"), storage.delete("object")):
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="timeout"):
            await call
        assert time.monotonic() - started < 3
    through.resume()


async def test_wrong_credentials_are_permission_denied(
    opened: OpenStorage, make_storage_config: MakeStorageConfig
) -> None:
    storage = await opened(make_storage_config("s3", config={"secret_key": "not the one"}))
    for call in (
        storage.store("object", b"data"),
        storage.retrieve("object"),
        storage.exists("object"),
        storage.delete("object"),
        storage.read_marker(),
    ):
        with pytest.raises(PermissionDenied, match="credentials"):
            await call


async def test_a_missing_bucket_is_not_a_missing_object(
    opened: OpenStorage, make_storage_config: MakeStorageConfig
) -> None:
    storage = await opened(make_storage_config("s3", config={"bucket": "no-such-bucket"}))
    for call in (storage.exists("object"), storage.retrieve("object"), storage.read_marker()):
        with pytest.raises(ConfigError, match="NoSuchBucket"):
            await call


async def test_a_redis_that_lost_its_data_has_lost_no_object(tmp_path: Path, opened: OpenStorage) -> None:
    with running_redis(tmp_path) as server:
        storage = await opened(BinaryStorageConfig(storage_type="redis", config={"endpoint": server.endpoint}))
        await storage.write_marker(StorageMarker("7b1c", "main"))
        await storage.store("object", b"data")
        await redis_command(server, "FLUSHALL")
        assert await storage.read_marker() is None
        for call in (storage.exists("object"), storage.retrieve("object")):
            with pytest.raises(StorageUnavailable, match="disappeared"):
                await call
        await storage.close()


async def test_a_storage_that_is_slow_is_not_an_error(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, s3_server: S3Server, proxy: MakeProxy
) -> None:
    through = await proxy(s3_server.host, s3_server.port)
    config = make_storage_config("s3", config={"endpoint": f"http://{through.host}:{through.port}"})
    storage = await opened(config)
    through.delay(0.1)
    await storage.store("object", b"data")
    assert await storage.retrieve("object") == b"data"


@pytest.mark.parametrize(
    ("error", "local", "expected"),
    [
        ("Unexpected (temporary) at write => no storage space\n\nSource:\n   gone (os error 28)", True, StorageFull),
        ("Unexpected (temporary) at write => x\n\nSource:\n   Disk quota exceeded (os error 122)", True, StorageFull),
        (
            "Unexpected (temporary) at write => x\n\nSource:\n   Read-only file system (os error 30)",
            True,
            PermissionDenied,
        ),
        ("Unexpected (temporary) at read => x\n\nSource:\n   Input/output error (os error 5)", True, IoError),
        (
            "Unexpected (temporary) at read => x\n\nSource:\n   Stale file handle (os error 116)",
            True,
            StorageUnavailable,
        ),
        ("Unexpected (temporary) at stat => operation timeout reached", True, StorageUnavailable),
        ("Unexpected (temporary) at read => something new", False, StorageUnavailable),
        ("Unexpected (permanent) at read => something new", False, OpenDalError),
        ("Unexpected (permanent) at  => reader got too little data", False, Corrupt),
        ("Unexpected (temporary) at stat => authentication failed\n\nSource:\n   x", False, PermissionDenied),
        ("Unexpected (permanent) at stat\n\nContext:\n   response: Parts { status: 401, x }", False, PermissionDenied),
        ("Unexpected (permanent) at write\n\nContext:\n   response: Parts { status: 507, x }", False, StorageFull),
        ("RateLimited (temporary) at write => slow down", False, StorageUnavailable),
    ],
)
def test_what_a_text_of_opendal_means(error: str, local: bool, expected: type[BinaryStorageError]) -> None:
    found = Translator("main", "here", local=local).error("read", "object", OSError(error))
    assert type(found) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EACCES, PermissionDenied),
        (errno.ENODEV, StorageUnavailable),
        (errno.EIO, IoError),
    ],
)
def test_what_a_number_of_the_operating_system_means(code: int, expected: type[BinaryStorageError]) -> None:
    found = Translator("main", "here", local=True).error("sync", "object", OSError(code, os.strerror(code)))
    assert type(found) is expected


def test_a_message_has_the_cause_but_no_password_and_no_backtrace() -> None:
    text = (
        "Unexpected (temporary) at read => send request\n\nContext:\n   url: http://u:hush@h/\n\nSource:\n"
        "   cannot reach http://u:hush@h/x: refused\n\nBacktrace:\n   0: <unknown>"
    )
    message = str(Translator("main", "s3://h/b", local=False).error("read", "object", OSError(text)))
    assert message == (
        "could not read object in storage 'main' at s3://h/b: Unexpected: read => send request: cannot reach "
        "http://h/x: refused (check that it runs, is mounted and can be reached)"
    )


async def test_close_waits_for_what_is_still_undone(make_storage: MakeStorage) -> None:
    storage = await make_storage("memory")
    undone = asyncio.Event()
    storage._undoing.tasks.add(asyncio.create_task(_set_by(undone)))
    closing = asyncio.create_task(storage.close())
    done, _ = await asyncio.wait({closing}, timeout=0.1)
    assert not done
    undone.set()
    await closing


async def _set_by(event: asyncio.Event) -> None:
    await event.wait()
