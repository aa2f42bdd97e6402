"""Engines and reapers go on while a check runs: what they do meanwhile is never taken for damage."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

import bdr
from bdr.errors import FileNotFound, NotReferenced
from bdr.fsck import FindingKind, check
from bdr.keys import object_path
from tests.fixtures.engines import AT_ONCE, Connect
from tests.fixtures.storages import MakeStorageConfig
from tests.fsck.support import Damage, checked, watched
from tests.guarantees import violations
from tests.lifecycle.support import HeldSource, blob_states, change, make_due, rows
from tests.reaper.support import EAGER, path_of, store_many


@pytest.fixture
async def binary(connect: Connect) -> AsyncIterator[bdr.BinaryDataLifecycleManager]:
    """An engine whose reaper does at once what is due; the guarantees are checked at the end."""
    manager = await connect(reaper=EAGER)
    yield manager
    assert await violations(manager.engine.database, manager.engine.storages) == []


async def place(binary: bdr.BinaryDataLifecycleManager, key: str) -> tuple[str, str]:
    """The path of a file's object, and its folder."""
    path = await path_of(binary, key)
    return path, path.partition("/")[0]


async def test_what_is_stored_after_the_rows_were_read_is_no_orphan(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    held = HeldSource()
    uploads: list[asyncio.Task[bdr.BinaryDataReference]] = []

    async def store() -> None:
        # Some of each shard will be published, one is still being written while the shards are listed.
        await store_many(binary, 60)
        uploads.append(asyncio.create_task(binary.store_stream(held.chunks())))
        await held.begun.wait()

    with watched(binary) as storage:
        storage.before_listing["00"] = store
        assert (await checked(binary, plan))[0].is_clean
    held.go_on.set()
    await uploads[0]


async def test_what_is_published_while_its_folder_is_listed_does_not_make_the_listing_incomplete(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    held = HeldSource()
    upload = asyncio.create_task(binary.store_stream(held.chunks()))
    await held.begun.wait()
    # Its row was made before the check began; neither its row nor its object counts before it is published.
    ((path,),) = await rows(binary, "SELECT object_path FROM bdr.blob")

    async def publish() -> None:
        held.go_on.set()
        await upload

    with watched(binary) as storage:
        storage.after_listing[path[:2]] = publish
        assert (await checked(binary, plan))[0].is_clean


@pytest.mark.parametrize("moment", ["before_listing", "after_listing"])
async def test_what_is_deleted_around_the_listing_is_not_missing(
    binary: bdr.BinaryDataLifecycleManager, plan: Path, moment: str
) -> None:
    (key,) = await store_many(binary, 1)
    _, folder = await place(binary, key)
    with watched(binary) as storage:
        getattr(storage, moment)[folder] = lambda: binary.delete_data(key)
        assert (await checked(binary, plan))[0].is_clean
    assert await blob_states(binary) == []


async def delete(binary: bdr.BinaryDataLifecycleManager, key: str) -> None:
    """Delete a file wholly."""
    await binary.delete_data(key)


async def begin_to_delete(binary: bdr.BinaryDataLifecycleManager, key: str) -> None:
    """Delete a file up to the moment when its object is gone, and the row not yet."""
    path = await Damage(binary).forget(key)
    sql = "UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now() WHERE object_path = :path"
    await change(binary, sql, path=path)
    await binary.engine.storage("main").delete(path)


Deleting = Callable[[bdr.BinaryDataLifecycleManager, str], Awaitable[None]]


@pytest.mark.parametrize("deleting", [delete, begin_to_delete])
@pytest.mark.parametrize("moment", ["before_stat", "after_stat"])
async def test_what_is_deleted_around_its_stat_is_not_missing(
    binary: bdr.BinaryDataLifecycleManager, plan: Path, moment: str, deleting: Deleting
) -> None:
    (key,) = await store_many(binary, 1)
    path = await Damage(binary).lose(key)
    with watched(binary) as storage:
        getattr(storage, moment)[path] = lambda: deleting(binary, key)
        assert (await checked(binary, plan))[0].is_clean


@pytest.mark.parametrize("deleting", [delete, begin_to_delete])
@pytest.mark.parametrize("data", [b"short", b"f!le 0"])
async def test_what_is_deleted_while_it_is_looked_at_is_neither_truncated_nor_corrupt(
    binary: bdr.BinaryDataLifecycleManager, plan: Path, data: bytes, deleting: Deleting
) -> None:
    (key,) = await store_many(binary, 1)
    path = await Damage(binary).replace(key, data)
    with watched(binary) as storage:
        moment = storage.before_stat if data == b"short" else storage.before_read
        moment[path] = lambda: deleting(binary, key)
        assert (await checked(binary, plan, checksum=True))[0].is_clean


async def test_what_is_reaped_after_it_was_listed_is_no_orphan(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    (key,) = await store_many(binary, 1)
    path, folder = await place(binary, key)
    await Damage(binary).forget(key)
    sql = "UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now() + interval '1 hour'"
    await change(binary, sql)

    async def reap() -> None:
        await make_due(binary)
        await binary.reap()
        assert await blob_states(binary) == []

    with watched(binary) as storage:
        storage.after_listing[folder] = reap
        assert (await checked(binary, plan))[0].is_clean
    assert not await binary.engine.storage("main").exists(path)


async def test_what_an_upload_owns_again_after_its_stat_is_no_orphan(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    path = await Damage(binary).strand()
    insert = """
        INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, instance_id, next_attempt_at)
        VALUES (gen_random_uuid(), 'main', :path, 'deleting', gen_random_uuid(), now())
    """
    with watched(binary) as storage:
        storage.after_stat[path] = lambda: change(binary, insert, path=path)
        assert (await checked(binary, plan))[0].is_clean


async def test_bytes_that_were_only_read_wrongly_are_not_corrupt(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    (key,) = await store_many(binary, 1)
    damage = Damage(binary)
    path = await damage.replace(key, b"f!le 0")

    async def heal() -> None:
        await damage.replace(key, b"file 0")

    with watched(binary) as storage:
        # The first read finds the wrong bytes; before the second one they are right.
        storage.before_read[path] = lambda: storage.before_read.update({path: heal})
        assert (await checked(binary, plan, checksum=True))[0].is_clean


class Load:
    """What engines do all day, at random, until told to stop.

    Attributes:
        done: how often each thing was done.
    """

    def __init__(self, binary: bdr.BinaryDataLifecycleManager, seed: int) -> None:
        self.done: dict[str, int] = dict.fromkeys(("store", "stream", "broken", "release", "delete", "get", "reap"), 0)
        self._binary = binary
        self._random = random.Random(seed)
        self._keys: list[str] = []

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            name = self._random.choice(list(self.done))
            with suppress(FileNotFound, NotReferenced):
                await getattr(self, f"_{name}")()
                self.done[name] += 1

    async def _store(self) -> None:
        data = self._random.randbytes(self._random.choice([0, 10, 10_000]))
        self._keys.append((await self._binary.store_data(data)).file_key)

    async def _stream(self) -> None:
        self._keys.append((await self._binary.store_stream(self._chunks(3))).file_key)

    async def _broken(self) -> None:
        with suppress(ZeroDivisionError):
            await self._binary.store_stream(self._chunks(3, ends_well=False))

    async def _chunks(self, count: int, *, ends_well: bool = True) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield self._random.randbytes(400_000)
        if not ends_well:
            raise ZeroDivisionError

    async def _release(self) -> None:
        await self._binary.release_reference(self._any())

    async def _delete(self) -> None:
        await self._binary.delete_data(self._any())

    async def _get(self) -> None:
        await self._binary.get_data(self._any())

    async def _reap(self) -> None:
        await self._binary.reap()

    def _any(self) -> str:
        if not self._keys:
            raise FileNotFound
        return self._keys[self._random.randrange(len(self._keys))]


@pytest.mark.parametrize("kind", ["fs", "s3"])
async def test_no_load_of_engines_and_reapers_is_taken_for_damage(
    connect: Connect, make_storage_config: MakeStorageConfig, plan: Path, kind: str
) -> None:
    config = make_storage_config(kind)
    life = bdr.LifecycleCleanupConfig(zero_ref_retention=AT_ONCE, max_retention=timedelta(days=1))
    busy = [await connect(storage=config, lifecycle=life, reaper=EAGER) for _ in range(2)]
    loads = [Load(engine, seed) for seed, engine in enumerate([*busy, busy[0]])]
    stopping = asyncio.Event()
    checker = await connect(storage=config, fsck=bdr.settings.FsckConfig(batch_size=5))
    async with asyncio.TaskGroup() as running:
        for load in loads:
            running.create_task(load.run(stopping))
        for checksum in (False, True):
            report = await check(checker, plan.with_name(f"{checksum}.plan"), checksum=checksum)
            assert (report.findings, report.unknown) == ({}, [])
            assert report.examined["main"].objects > 0
        stopping.set()
    total = {name: sum(load.done[name] for load in loads) for name in loads[0].done}
    assert all(count > 0 for count in total.values())
    assert await violations(checker.engine.database, checker.engine.storages) == []


async def test_orphans_are_found_under_load_all_the_same(connect: Connect, plan: Path) -> None:
    binary = await connect(reaper=EAGER)
    stopping = asyncio.Event()
    lost = await Damage(binary).lose((await binary.store_data(b"lost")).file_key)
    orphan = await Damage(binary).strand(object_path(bdr.keys.new_id()))
    async with asyncio.TaskGroup() as running:
        running.create_task(Load(binary, 1).run(stopping))
        _, found = await checked(binary, plan)
        stopping.set()
    assert found == {(FindingKind.ORPHAN, orphan), (FindingKind.MISSING, lost)}
