"""Folders are synced: all of them, before a store returns, and once for many."""

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from bdr.errors import StorageUnavailable
from bdr.storage import OpenDalStorage, StorageMarker
from bdr.storage.durable import DirectorySync, prepare_root
from tests.storage.conftest import MakeStorage
from tests.storage.helpers import root_of, run_python
from tests.storage.programs import SILENT


class CountingSync:
    """os.fsync that remembers which folders it was called for, and can be held up."""

    def __init__(self) -> None:
        self.synced: list[Path] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, descriptor: int) -> None:
        self.synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        os.fsync(descriptor)
        self.entered.set()
        assert self.go_on.wait(20)


@pytest.fixture
def fsync() -> CountingSync:
    return CountingSync()


async def test_every_folder_down_to_the_object_is_synced(tmp_path: Path, fsync: CountingSync) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    folders = DirectorySync(tmp_path, fsync=fsync)
    await folders.sync("a/b/object")
    assert sorted(fsync.synced) == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


async def test_those_who_wait_share_one_round(tmp_path: Path, fsync: CountingSync) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    folders = DirectorySync(tmp_path, fsync=fsync)
    fsync.go_on.clear()
    first = asyncio.create_task(folders.sync("a/first"))
    await asyncio.to_thread(fsync.entered.wait, 20)
    others = []
    for number in range(100):
        others.append(asyncio.create_task(folders.sync(f"{'ab'[number % 2]}/{number}")))
        await asyncio.sleep(0)
    assert not first.done()
    fsync.go_on.set()
    await asyncio.gather(first, *others)
    assert len(fsync.synced) == 2 + 3


async def test_who_comes_during_a_round_is_not_served_by_it(tmp_path: Path, fsync: CountingSync) -> None:
    folders = DirectorySync(tmp_path, fsync=fsync)
    fsync.go_on.clear()
    first = asyncio.create_task(folders.sync("first"))
    await asyncio.to_thread(fsync.entered.wait, 20)
    second = asyncio.create_task(folders.sync("second"))
    fsync.go_on.set()
    await asyncio.gather(first, second)
    assert fsync.synced == [tmp_path, tmp_path]


async def test_who_gives_up_does_not_take_the_round_away(tmp_path: Path, fsync: CountingSync) -> None:
    folders = DirectorySync(tmp_path, fsync=fsync)
    fsync.go_on.clear()
    impatient, patient = (asyncio.create_task(folders.sync(name)) for name in ("one", "two"))
    await asyncio.to_thread(fsync.entered.wait, 20)
    impatient.cancel()
    fsync.go_on.set()
    await patient
    assert impatient.cancelled()
    assert fsync.synced == [tmp_path]


async def test_a_round_that_hangs_is_given_up_and_no_second_one_hangs_beside_it(
    tmp_path: Path, fsync: CountingSync
) -> None:
    folders = DirectorySync(tmp_path, patience=timedelta(seconds=0.2), fsync=fsync)
    fsync.go_on.clear()
    for name in ("one", "two"):
        with pytest.raises(TimeoutError, match="no answer within 200ms"):
            await folders.sync(name)
    await asyncio.to_thread(fsync.entered.wait, 20)
    assert fsync.synced == [tmp_path]
    fsync.go_on.set()
    folders._patience = timedelta(minutes=1)
    await folders.sync("three")
    assert fsync.synced == [tmp_path, tmp_path]


async def test_a_folder_whose_turn_does_not_come_in_time_is_left_out(tmp_path: Path, fsync: CountingSync) -> None:
    names = [tmp_path / name for name in ("ab", "cd")]
    for name in names:
        name.mkdir()
    folders = DirectorySync(tmp_path, patience=timedelta(seconds=0.2), fsync=fsync)
    fsync.go_on.clear()
    outcomes = await folders.removed_from(names, threads=1)
    fsync.go_on.set()
    assert {folder: type(error) for folder, error in outcomes.items()} == {names[0]: TimeoutError}


async def test_a_mount_that_falls_silent_keeps_nobody_waiting_and_no_process_from_ending(tmp_path: Path) -> None:
    code, output, errors = await run_python(SILENT, str(tmp_path / "main"), str(tmp_path / "other" / "new"))
    assert (code, errors.count("\n")) == (0, 1)
    assert errors.startswith("a failed upload to ab/many")
    assert errors.endswith("is not undone yet: the storage did not do it in 0:00:01\n")
    *refused, hanging = output.splitlines()
    assert len(refused) == 7
    assert all("(check that it" in line for line in refused), output
    # The syncs of a storage share one; a small file, two reads, a listing and an opening have one each.
    assert hanging == "6"


async def test_a_failed_sync_fails_those_whose_folder_it_was(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "good").mkdir()

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "bad":
            raise OSError(errno.EIO, "the disk is broken")

    folders = DirectorySync(tmp_path, fsync=fsync)
    results = await asyncio.gather(folders.sync("bad/1"), folders.sync("good/2"), return_exceptions=True)
    assert isinstance(results[0], OSError)
    assert results[0].errno == errno.EIO
    assert results[1] is None


async def test_a_file_system_that_cannot_sync_folders_is_accepted(tmp_path: Path) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, f"{descriptor} cannot be synced")

    await DirectorySync(tmp_path, fsync=fsync).sync("object")


def test_the_folders_made_for_a_root_are_synced(tmp_path: Path, fsync: CountingSync) -> None:
    prepare_root(tmp_path / "a/b/root", fsync=fsync)
    assert sorted(fsync.synced) == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    prepare_root(tmp_path / "a/b/root", fsync=fsync)
    assert fsync.synced[3:] == [tmp_path / "a/b"]


@pytest.fixture
async def watched(make_storage: MakeStorage, fsync: CountingSync) -> OpenDalStorage:
    """A storage of type fs whose syncs are counted."""
    storage = await make_storage("fs")
    storage._folders = DirectorySync(root_of(storage), fsync=fsync)
    return storage


async def test_stores_deletes_and_the_marker_are_durable(watched: OpenDalStorage, fsync: CountingSync) -> None:
    root = root_of(watched)
    await watched.store("ab/object", b"data")
    assert sorted(fsync.synced) == [root, root / "ab"]
    fsync.synced.clear()
    await watched.store("cd/large", bytes(9 << 20))
    assert sorted(fsync.synced) == [root, root / "cd"]
    fsync.synced.clear()
    await watched.delete("ab/object")
    assert fsync.synced == [root / "ab"]
    fsync.synced.clear()
    await watched.write_marker(StorageMarker("7b1c", "main"))
    assert fsync.synced == [root]


async def test_folders_above_are_synced_for_the_first_object_of_a_folder_and_whenever_it_is_made_anew(
    watched: OpenDalStorage, fsync: CountingSync
) -> None:
    root = root_of(watched)
    for name, synced in (("one", [root, root / "ab"]), ("two", [root / "ab"])):
        await watched.store(f"ab/{name}", b"data")
        assert sorted(fsync.synced) == synced
        fsync.synced.clear()
    shutil.rmtree(root / "ab")
    await watched.store("ab/three", b"data")
    assert sorted(fsync.synced) == [root, root / "ab"]


async def test_a_store_returns_after_the_sync(watched: OpenDalStorage, fsync: CountingSync) -> None:
    fsync.go_on.clear()
    store = asyncio.create_task(watched.store("ab/object", b"data"))
    await asyncio.to_thread(fsync.entered.wait, 20)
    assert await watched.exists("ab/object")
    assert not store.done()
    fsync.go_on.set()
    await store


MINUTE = timedelta(minutes=1)


async def filled(storage: OpenDalStorage, fsync: CountingSync) -> list[str]:
    paths = [f"{folder}/{number}" for folder in ("ab", "cd") for number in range(5)]
    await asyncio.gather(*(storage.store(path, b"data") for path in paths))
    fsync.synced.clear()
    fsync.entered.clear()
    return paths


async def test_many_deletes_return_after_one_sync_of_each_folder(watched: OpenDalStorage, fsync: CountingSync) -> None:
    paths = await filled(watched, fsync)
    fsync.go_on.clear()
    deletes = asyncio.create_task(watched.delete_many([*paths, "ef/never"], concurrency=3, patience=MINUTE))
    await asyncio.to_thread(fsync.entered.wait, 20)
    assert not any([await watched.exists(path) for path in paths])
    assert not deletes.done()
    fsync.go_on.set()
    assert await deletes == dict.fromkeys([*paths, "ef/never"])
    root = root_of(watched)
    assert sorted(fsync.synced) == [root / "ab", root / "cd"]


async def test_deletes_in_a_folder_that_cannot_be_synced_are_not_told(make_storage: MakeStorage) -> None:
    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "ab":
            raise OSError(errno.EIO, "the disk is broken")

    storage = await make_storage("fs")
    paths = await filled(storage, CountingSync())
    storage._folders = DirectorySync(root_of(storage), fsync=fsync)
    outcomes = await storage.delete_many(paths, concurrency=3, patience=MINUTE)
    assert [path for path in paths if outcomes[path] is None] == paths[5:]
    assert all("the disk is broken" in str(outcomes[path]) for path in paths[:5])


async def test_what_cannot_be_deleted_is_told_beside_what_was(watched: OpenDalStorage, fsync: CountingSync) -> None:
    paths = await filled(watched, fsync)
    await watched.store("gh/folder/object", b"data")
    outcomes = await watched.delete_many([*paths, "gh/folder"], concurrency=3, patience=MINUTE)
    assert [path for path, error in outcomes.items() if error is not None] == ["gh/folder"]
    assert outcomes.keys() == {*paths, "gh/folder"}


async def test_a_delete_that_hangs_is_unavailable_and_the_others_are_not_begun(
    watched: OpenDalStorage, fsync: CountingSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await filled(watched, fsync)
    unlink = os.unlink
    go_on = threading.Event()

    def hanging(path: str) -> None:
        if not path.endswith("/0"):
            assert go_on.wait(20)
        unlink(path)

    monkeypatch.setattr(os, "unlink", hanging)
    monkeypatch.setattr(watched._calls, "patience", timedelta(seconds=0.2))
    outcomes = await watched.delete_many(paths, concurrency=2, patience=MINUTE)
    # What was deleted before is not synced, and so not told.
    assert {path: type(error) for path, error in outcomes.items()} == dict.fromkeys(
        ["ab/1", "ab/2"], StorageUnavailable
    )
    go_on.set()
    assert await watched.exists("cd/4")


async def test_an_unmounted_share_takes_and_deletes_nothing(make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    root = root_of(storage)
    marker = StorageMarker("7b1c", "main")
    await storage.write_marker(marker)
    await storage.store("ab/object", b"data")
    away = root.rename(root.with_name("away"))
    root.mkdir()
    assert await storage.read_marker() is None
    for call in (
        storage.store("ab/new", b"data"),
        storage.store_stream("ab/other", chunks_of(b"x" * (9 << 20))),
        storage.delete("ab/object"),
        storage.exists("ab/object"),
        storage.retrieve("ab/object"),
        storage.get_metadata("ab/object"),
        storage.retrieve_range("ab/object", 0, 1),
    ):
        with pytest.raises(StorageUnavailable, match="disappeared"):
            await call
    outcomes = await storage.delete_many(["ab/object", "ab/other"], concurrency=2, patience=MINUTE)
    assert [type(error) for error in outcomes.values()] == [StorageUnavailable] * 2
    for file in [*root.rglob("*")][::-1]:
        file.rmdir() if file.is_dir() else file.unlink()
    root.rmdir()
    away.rename(root)
    assert await storage.read_marker() == marker
    assert await storage.retrieve("ab/object") == b"data"


async def test_looking_for_the_marker_does_not_create_a_vanished_root(make_storage: MakeStorage) -> None:
    storage = await make_storage("fs")
    root = root_of(storage)
    root.rmdir()
    assert await storage.read_marker() is None
    assert not root.exists()


async def chunks_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
