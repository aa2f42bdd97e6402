"""What a storage says it holds, streamed, and moving an object within it."""

import asyncio
import os
from pathlib import Path

import pytest

from bdr.errors import (
    BinaryStorageError,
    Corrupt,
    FileNotFound,
    InstanceClosed,
    InvalidArgument,
    OperationError,
    StorageUnavailable,
)
from bdr.storage import OpenDalStorage
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, S3Server
from tests.storage.conftest import MakeStorage, OpenStorage
from tests.storage.helpers import root_of

LISTING = ("fs", "memory", "s3")
OBJECTS = {"ab/one": 3, "ab/two": 0, "ab/below/three": 5, "abc": 7, ".bdr-quarantine/four": 11, "cd/five": 13}


@pytest.fixture(params=LISTING)
async def filled(request: pytest.FixtureRequest, make_storage: MakeStorage) -> OpenDalStorage:
    storage = await make_storage(request.param)
    for path, size in OBJECTS.items():
        await storage.store(path, bytes(size))
    return storage


async def sizes(storage: OpenDalStorage, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
    found = [one async for one in storage.list_objects(folder, recursive=recursive)]
    assert len({one.path for one in found}) == len(found)
    return {one.path: one.size for one in found}


async def test_every_object_is_listed_with_its_size(filled: OpenDalStorage) -> None:
    assert filled.can_list
    assert await sizes(filled) == OBJECTS


async def test_a_folder_is_listed_with_what_is_below_it_and_without_its_namesakes(filled: OpenDalStorage) -> None:
    assert await sizes(filled, "ab") == {"ab/one": 3, "ab/two": 0, "ab/below/three": 5}
    assert await sizes(filled, "ab", recursive=False) == {"ab/one": 3, "ab/two": 0, "ab/below/": None}
    assert await sizes(filled, recursive=False) == {"abc": 7, "ab/": None, "cd/": None, ".bdr-quarantine/": None}
    assert await sizes(filled, "ef") == {}
    assert await sizes(filled, "ab/one") == {}


@pytest.mark.parametrize(("kind", "count"), [("fs", 1100), ("s3", 1100)])
async def test_a_folder_may_be_larger_than_a_page(make_storage: MakeStorage, kind: str, count: int) -> None:
    storage = await make_storage(kind)
    paths = {f"ab/{number:05}" for number in range(count)}
    await asyncio.gather(*(storage.store(path, b"x") for path in paths))
    assert await sizes(storage, "ab") == dict.fromkeys(paths, 1)


async def test_a_service_without_a_listing_says_so(make_storage: MakeStorage) -> None:
    storage = await make_storage("redis")
    assert not storage.can_list
    with pytest.raises(OperationError, match="redis has no listing"):
        storage.list_objects()


async def test_what_is_no_folder_of_bdr_is_refused(filled: OpenDalStorage) -> None:
    for folder in ("..", "a b", "ab/", "/"):
        with pytest.raises(InvalidArgument):
            filled.list_objects(folder)


async def test_a_closed_storage_lists_nothing(filled: OpenDalStorage) -> None:
    await filled.close()
    with pytest.raises(InstanceClosed):
        await sizes(filled)


async def test_a_listing_that_breaks_off_is_an_error(
    opened: OpenStorage, make_storage_config: MakeStorageConfig, s3_server: S3Server, proxy: MakeProxy
) -> None:
    through = await proxy(s3_server.host, s3_server.port)
    config = make_storage_config("s3")
    direct = await opened(config)
    await asyncio.gather(*(direct.store(f"ab/{number:05}", b"x") for number in range(1050)))
    endpoint = {"endpoint": f"http://{through.host}:{through.port}"}
    storage = await opened(config.model_copy(update={"config": config.config | endpoint}))
    listing = aiter(storage.list_objects("ab"))
    await anext(listing)
    through.stop()
    # What is left of the first page comes; how much that is, the server decides.
    with pytest.raises(StorageUnavailable, match="could not list ab/"):
        [one async for one in listing]


async def test_a_missing_bucket_and_a_missing_root_are_errors_and_not_empty(
    opened: OpenStorage, make_storage: MakeStorage, make_storage_config: MakeStorageConfig
) -> None:
    nowhere = await opened(make_storage_config("s3", config={"bucket": "no-such-bucket"}))
    with pytest.raises(BinaryStorageError, match="NoSuchBucket"):
        await sizes(nowhere, "ab")
    storage = await make_storage("fs")
    root_of(storage).rmdir()
    with pytest.raises(BinaryStorageError, match="could not list"):
        await sizes(storage)


async def test_links_are_shown_and_not_followed(make_storage: MakeStorage, tmp_path: Path) -> None:
    storage = await make_storage("fs")
    root, elsewhere = root_of(storage), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_bytes(b"not ours")
    (root / "ab").mkdir()
    (root / "ab" / "folder").symlink_to(elsewhere)
    (root / "ab" / "dangling").symlink_to(root / "nowhere")
    (root / "cd").symlink_to(elsewhere)
    assert set(await sizes(storage)) == {"ab/folder", "ab/dangling", "cd"}
    # Whoever keeps a folder of objects on another disk means the link.
    assert set(await sizes(storage, "cd")) == {"cd/secret"}


async def test_what_others_put_there_is_listed_whatever_its_name(make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    root = root_of(storage)
    for name in ("two\nlines", os.fsdecode(b"not utf-8 \xff"), "grün"):
        (root / name).touch()
    os.mkfifo(root / "pipe")
    assert set(await sizes(storage)) == {"two\nlines", "not utf-8 \\xff", "grün", "pipe"}


async def test_a_move_takes_the_object_to_another_path(filled: OpenDalStorage) -> None:
    await filled.move("ab/one", ".bdr-quarantine/one")
    assert not await filled.exists("ab/one")
    assert await filled.retrieve(".bdr-quarantine/one") == bytes(3)


async def test_a_move_may_be_repeated_and_finished_by_another(filled: OpenDalStorage) -> None:
    for _ in range(2):
        await filled.move("cd/five", "quarantine/five")
    # As a process leaves it that dies between the copy and the delete.
    await filled.store("cd/five", bytes(13))
    await filled.move("cd/five", "quarantine/five")
    assert await sizes(filled, "cd") == {}
    assert await sizes(filled, "quarantine") == {"quarantine/five": 13}


async def test_two_that_move_an_object_at_once_lose_nothing(filled: OpenDalStorage) -> None:
    await asyncio.gather(*(filled.move("cd/five", "quarantine/five") for _ in range(4)), return_exceptions=True)
    await filled.move("cd/five", "quarantine/five")
    assert await sizes(filled, "cd") == {}
    assert await sizes(filled, "quarantine") == {"quarantine/five": 13}


async def test_what_is_not_there_cannot_be_moved(filled: OpenDalStorage) -> None:
    with pytest.raises(FileNotFound):
        await filled.move("cd/none", "quarantine/none")
    for path, target in ((".bdr-storage", "stolen"), ("cd/five", ".bdr-storage"), ("cd/five", "../five")):
        with pytest.raises(InvalidArgument):
            await filled.move(path, target)


@pytest.mark.parametrize("kind", ["memory", "s3"])
async def test_what_is_at_the_target_already_is_neither_taken_for_a_copy_nor_deleted(
    make_storage: MakeStorage, kind: str
) -> None:
    storage = await make_storage(kind)
    await storage.store("ab/one", b"one")
    await storage.store("target", b"another")
    with pytest.raises(Corrupt, match="neither was deleted"):
        await storage.move("ab/one", "target")
    assert await storage.retrieve("ab/one") == b"one"
    assert await storage.retrieve("target") == b"another"


async def test_a_large_object_is_moved_in_pieces_where_the_service_cannot_copy(make_storage: MakeStorage) -> None:
    storage = await make_storage("memory")
    data = os.urandom(20 * 1024 * 1024)
    await storage.store("ab/large", data)
    await storage.move("ab/large", "target")
    assert await storage.retrieve("target") == data
