"""Nothing is deleted from a place that is not the storage it should be: not mounted, replaced, or another catalog's."""

import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig
from bdr.catalog import blob, expiry
from bdr.errors import StorageMismatch
from bdr.manager.sweep import sweep_objects
from bdr.storage import OpenDalStorage
from bdr.storage.deleting import Outcomes
from bdr.storage.paths import MARKER_PATH
from tests.fixtures.engines import Connect
from tests.fixtures.postgres import PostgresServer
from tests.lifecycle.support import make_due
from tests.reaper.support import EAGER, HOUR, blobs, expired, folder_of, keys_left
from tests.storage.helpers import files_below

Swap = Callable[[Path], None]


def unmount(root: Path) -> None:
    """What is left of a share that is not mounted: its empty folder."""
    root.rename(root.with_name("elsewhere"))
    root.mkdir()


def mount_another(root: Path) -> None:
    """Another catalog's storage in its place, which began as a copy of this one."""
    unmount(root)
    shutil.copytree(root.with_name("elsewhere"), root, dirs_exist_ok=True)
    marker = json.loads((root / MARKER_PATH).read_text())
    marker["catalog_id"] = "00000000-0000-0000-0000-000000000000"
    (root / MARKER_PATH).write_text(json.dumps(marker))


def mount_something_else(root: Path) -> None:
    """Files of another program in its place."""
    unmount(root)
    (root / MARKER_PATH).write_text("not a marker")


def mount_again(root: Path) -> None:
    shutil.rmtree(root)
    root.with_name("elsewhere").rename(root)


swapped = pytest.mark.parametrize(
    ("swap", "complaint"),
    [
        (unmount, "not mounted, or was emptied|has disappeared"),
        (mount_another, "marked as storage 'main' of catalog 00000000-.*Nothing is deleted there"),
        (mount_something_else, "is not one that bdr wrote"),
    ],
)


@pytest.fixture
async def binary(connect: Connect) -> BinaryDataLifecycleManager:
    return await connect(reaper=EAGER)


async def everything_goes_when_it_is_back(binary: BinaryDataLifecycleManager, root: Path) -> None:
    mount_again(root)
    await make_due(binary)
    report = await binary.reap()
    assert (report.blobs, report.unreachable) == (4, {})
    assert [path.name for path in files_below(root)] == [MARKER_PATH]
    assert await blobs(binary) == []


@swapped
async def test_a_storage_that_is_not_the_right_place_is_left_out(
    binary: BinaryDataLifecycleManager, swap: Swap, complaint: str
) -> None:
    keys = await expired(binary, 4)
    root = folder_of(binary)
    swap(root)
    there = sorted(files_below(root))
    report = await binary.reap()
    assert (report.references, report.blobs, report.stranded, report.failed) == (0, 0, 0, 0)
    assert re.search(complaint, report.unreachable["main"])
    assert sorted(files_below(root)) == there
    assert await keys_left(binary) == set(keys)
    await everything_goes_when_it_is_back(binary, root)


@swapped
async def test_a_storage_that_is_replaced_after_the_claim_keeps_its_rows(
    binary: BinaryDataLifecycleManager, swap: Swap, complaint: str
) -> None:
    await expired(binary, 4)
    root = folder_of(binary)
    database = binary.engine.database
    await database.transaction(lambda own: expiry.claim_expired(own, "main", 100))
    claimed = await database.write(lambda own: blob.claim_due(own, "main", HOUR, 100))
    swap(root)
    there = sorted(files_below(root))
    sweep = await sweep_objects(binary.engine, "main", claimed)
    assert sorted(files_below(root)) == there
    assert (len(sweep.deleted), len(sweep.failed), len(sweep.unreachable)) == (0, 0, 4)
    assert re.search(complaint, sweep.unreachable[0].error)
    assert [(state, attempts) for state, attempts, *_ in await blobs(binary)] == [("deleting", 0)] * 4
    await everything_goes_when_it_is_back(binary, root)


@swapped
async def test_a_storage_that_is_replaced_while_objects_are_deleted_keeps_its_rows(
    binary: BinaryDataLifecycleManager, monkeypatch: pytest.MonkeyPatch, swap: Swap, complaint: str
) -> None:
    await expired(binary, 4)
    root = folder_of(binary)
    delete_many = OpenDalStorage.delete_many

    async def delete_elsewhere(storage: OpenDalStorage, paths: Sequence[str], **options: Any) -> Outcomes:
        # Just before the first delete reaches it. Every delete then "succeeds", for there is nothing to delete.
        if not root.with_name("elsewhere").exists():
            swap(root)
        return await delete_many(storage, paths, **options)

    monkeypatch.setattr(OpenDalStorage, "delete_many", delete_elsewhere)
    report = await binary.reap()
    monkeypatch.undo()
    assert (report.references, report.blobs, report.failed) == (4, 0, 0)
    assert re.search(complaint, report.unreachable["main"])
    assert [(state, attempts) for state, attempts, *_ in await blobs(binary)] == [("deleting", 0)] * 4
    await everything_goes_when_it_is_back(binary, root)


@pytest.fixture
async def another_catalog_url(postgres: PostgresServer, template_database: str) -> AsyncIterator[str]:
    name = await postgres.create_database(template_database)
    await postgres.execute("UPDATE bdr.catalog SET catalog_id = gen_random_uuid()", name)
    yield postgres.url(name)
    await postgres.drop_database(name)


@pytest.mark.parametrize("name", ["main", "another"])
async def test_two_catalogs_cannot_use_one_place(
    connect: Connect, another_catalog_url: str, fs_config: BinaryStorageConfig, name: str
) -> None:
    ours = await connect()
    (key, _) = await expired(ours, 2)
    with pytest.raises(StorageMismatch, match=f"marked as storage 'main' of catalog {ours.engine.catalog_id}"):
        await connect(database_url=another_catalog_url, storages={name: fs_config}, default_storage=name)
    assert await ours.get_data(key) == b"file 0"


async def test_engines_whose_main_is_another_place_are_told_both_places(
    connect: Connect, fs_config: BinaryStorageConfig, tmp_path: Path
) -> None:
    await connect()
    with pytest.raises(StorageMismatch) as raised:
        await connect(storage=BinaryStorageConfig(storage_type="fs", root=str(tmp_path / "other")))
    for place in (fs_config.root, str(tmp_path / "other")):
        assert place in str(raised.value)
