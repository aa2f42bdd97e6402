"""Many deletes at once on a file system: what is told of each while the mount goes away, falls silent or is slow."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bdr.errors import StorageUnavailable
from bdr.storage import OpenDalStorage, StorageMarker
from bdr.storage.durable import DirectorySync
from tests.storage.conftest import MakeStorage
from tests.storage.helpers import root_of, until

MINUTE = timedelta(minutes=1)
SOON = timedelta(seconds=0.2)
PATHS = [f"{folder}/{number}" for folder in ("ab", "cd") for number in range(5)]


@pytest.fixture
async def storage(make_storage: MakeStorage) -> OpenDalStorage:
    """Of type fs, with a marker and an object at each of the paths."""
    storage = await make_storage("fs")
    await storage.write_marker(StorageMarker("7b1c", "main"))
    await asyncio.gather(*(storage.store(path, b"data") for path in PATHS))
    return storage


def there(storage: OpenDalStorage, paths: Sequence[str] = PATHS) -> list[str]:
    """Those of the paths at which an object lies."""
    return [path for path in paths if (root_of(storage) / path).exists()]


def sync_by(storage: OpenDalStorage, fsync: Callable[[int], None], patience: timedelta = MINUTE) -> None:
    """Have the storage's folders synced by `fsync`."""
    assert storage._folders is not None
    marker = storage._folders.marker
    storage._folders = DirectorySync(root_of(storage), patience=patience, fsync=fsync)
    storage._folders.marker = marker


def folder_of(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


def hanging_in(folder: str, go_on: threading.Event) -> Callable[[int], None]:
    """A sync that does not come back from one folder before it may."""

    def fsync(descriptor: int) -> None:
        if folder_of(descriptor) == folder:
            assert go_on.wait(20)

    return fsync


async def test_a_share_that_is_away_for_two_deletes_has_not_lost_their_objects(
    storage: OpenDalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, one_at_a_time = os.unlink, threading.Lock()
    root = root_of(storage)
    seen: list[str] = []

    def while_away(path: str, **more: Any) -> None:
        away = root.rename(root.with_name("away"))
        root.mkdir()
        try:
            unlink(path, **more)
        finally:
            root.rmdir()
            away.rename(root)

    def sometimes_away(path: str, **more: Any) -> None:
        with one_at_a_time:
            seen.append(path)
            if len(seen) in {3, 4}:
                while_away(path, **more)
            else:
                unlink(path, **more)

    monkeypatch.setattr(os, "unlink", sometimes_away)
    outcomes = await storage.delete_many(PATHS, concurrency=2, patience=MINUTE)
    monkeypatch.undo()
    assert outcomes.keys() == {*PATHS}
    assert [path for path in PATHS if outcomes[path] is not None] == there(storage)
    assert len(seen) > len(PATHS), "nothing was looked for again"


async def test_of_folders_that_are_not_synced_in_time_one_object_is_told_and_the_synced_are_gone(
    storage: OpenDalStorage,
) -> None:
    go_on = threading.Event()
    sync_by(storage, hanging_in("cd", go_on), SOON)
    outcomes = await storage.delete_many(PATHS, concurrency=4, patience=MINUTE)
    go_on.set()
    assert sorted(path for path, error in outcomes.items() if error is None) == PATHS[:5]
    (error,) = (error for error in outcomes.values() if error is not None)
    assert isinstance(error, StorageUnavailable)
    assert "could not sync the folder of cd/" in str(error)


async def test_of_a_folder_that_hangs_nothing_is_told_of_those_whose_turn_did_not_come(
    make_storage: MakeStorage,
) -> None:
    storage = await make_storage("fs")
    paths = [f"{folder}/{number}" for folder in ("aa", "bb", "cc", "dd") for number in range(2)]
    await asyncio.gather(*(storage.store(path, b"data") for path in paths))
    go_on = threading.Event()
    sync_by(storage, hanging_in("cc", go_on), SOON)
    outcomes = await storage.delete_many(paths, concurrency=2, patience=MINUTE)
    go_on.set()
    (charged,) = (path for path, error in outcomes.items() if error is not None)
    assert charged.startswith("cc/")
    # One thread has all four folders, in their order.
    assert sorted(path for path, error in outcomes.items() if error is None) == paths[:4]


async def test_a_share_that_is_away_while_folders_are_synced_has_lost_no_object(storage: OpenDalStorage) -> None:
    root = root_of(storage)
    away = root.with_name("away")

    def fsync(_descriptor: int) -> None:
        if root.exists():
            root.rename(away)

    sync_by(storage, fsync)
    outcomes = await storage.delete_many(PATHS, concurrency=2, patience=MINUTE)
    away.rename(root)
    assert [type(error) for error in outcomes.values()] == [StorageUnavailable]
    assert "disappeared" in str(next(iter(outcomes.values())))


async def test_after_a_mount_fell_silent_nothing_more_is_asked_of_it(
    storage: OpenDalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, go_on = os.unlink, threading.Event()
    synced: list[str] = []

    def hanging(path: str) -> None:
        if path.endswith("ab/3"):
            raise OSError(errno.EIO, "refused")
        if path.endswith(("ab/4", "cd/0")):
            assert go_on.wait(20)
        unlink(path)

    monkeypatch.setattr(os, "unlink", hanging)
    monkeypatch.setattr(storage._calls, "patience", SOON)
    sync_by(storage, lambda descriptor: synced.append(folder_of(descriptor)))
    outcomes = await storage.delete_many(PATHS, concurrency=2, patience=MINUTE)
    assert {path: type(error) for path, error in outcomes.items()} == dict.fromkeys(
        ["ab/4", "cd/0"], StorageUnavailable
    )
    assert synced == []
    assert there(storage) == PATHS[3:]
    go_on.set()
    await until(lambda: asyncio.to_thread(lambda: there(storage) == [PATHS[3], *PATHS[6:]]))


async def test_what_is_refused_is_not_tried_again_after_the_time_is_over(
    storage: OpenDalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> None:
        raise OSError(errno.EIO, "refused", path)

    monkeypatch.setattr(os, "unlink", refused)
    assert await storage.delete_many(PATHS, concurrency=2, patience=timedelta(0)) == {}
    assert there(storage) == PATHS


async def test_batches_share_the_threads_that_a_storage_may_have(
    make_storage: MakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await make_storage("fs", concurrency=6)
    unlink, both = os.unlink, threading.Barrier(2)
    running: set[int] = set()
    at_once: list[int] = []

    def counted(path: str, **more: Any) -> None:
        running.add(threading.get_ident())
        at_once.append(len(running))
        both.wait(20)
        running.discard(threading.get_ident())
        unlink(path, **more)

    batches = [[f"{folder}/{number}" for number in range(10)] for folder in ("ab", "cd", "ef", "gh")]
    await asyncio.gather(*(storage.store(path, b"data") for paths in batches for path in paths))
    monkeypatch.setattr(os, "unlink", counted)
    outcomes = await asyncio.gather(*(storage.delete_many(paths, concurrency=8, patience=MINUTE) for paths in batches))
    assert outcomes == [dict.fromkeys(paths) for paths in batches]
    assert max(at_once) <= 6


async def test_who_waits_for_other_batches_waits_no_longer_than_its_time(
    storage: OpenDalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, begun, go_on = os.unlink, threading.Semaphore(0), threading.Event()

    def held(path: str) -> None:
        begun.release()
        assert go_on.wait(20)
        unlink(path)

    monkeypatch.setattr(os, "unlink", held)
    batches = [PATHS[:2], PATHS[2:4], PATHS[4:6]]
    first = [asyncio.create_task(storage.delete_many(paths, concurrency=2, patience=MINUTE)) for paths in batches]
    for _ in batches:
        assert await asyncio.to_thread(begun.acquire, timeout=20)
    assert await storage.delete_many(PATHS[6:], concurrency=2, patience=SOON) == {}
    go_on.set()
    assert await asyncio.gather(*first) == [dict.fromkeys(paths) for paths in batches]
    assert there(storage) == PATHS[6:]
