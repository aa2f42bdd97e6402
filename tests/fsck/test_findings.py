"""What differs is found, what does not is not, and a check changes nothing."""

from pathlib import Path

import pytest
from sqlalchemy import text

import bdr
from bdr.fsck import Examined, FindingKind
from bdr.settings import FsckConfig
from tests.fixtures.engines import Connect
from tests.fsck.support import Damage, checked, findings_in, without_checks
from tests.guarantees import objects_in
from tests.lifecycle.support import change, rows
from tests.reaper.support import folder_of, store_many

MISSING, TRUNCATED, CORRUPT = FindingKind.MISSING, FindingKind.TRUNCATED, FindingKind.CORRUPT
ORPHAN, UNREFERENCED, COUNT = FindingKind.ORPHAN, FindingKind.UNREFERENCED, FindingKind.COUNT


async def contents(binary: bdr.BinaryDataLifecycleManager) -> list[object]:
    """All rows that a check might change, and all objects."""
    tables = ("blob", "binary_data_reference", "storage")
    catalog = [await rows(binary, f"SELECT * FROM bdr.{table} ORDER BY 1") for table in tables]
    return [*catalog, [await objects_in(storage) for storage in binary.engine.storages.values()]]


@pytest.mark.parametrize("checksum", [False, True])
async def test_what_agrees_is_clean_in_every_state(
    listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path, checksum: bool
) -> None:
    keys = await store_many(listing, 10)
    await listing.store_data(b"")
    await listing.store_data(bytes(9_000_000))
    # Whatever state its row is in, an object has an owner; and none of these rows needs its object.
    for state, number in (("pending", 0), ("deleting", 1), ("quarantined", 2)):
        path = await damage.forget(keys[number])
        deadline = "NULL" if state == "quarantined" else "now()"
        sql = f"UPDATE bdr.blob SET state = :state, next_attempt_at = {deadline} WHERE object_path = :path"
        await change(listing, sql, state=state, path=path)
    before = await contents(listing)
    report, found = await checked(listing, plan, checksum=checksum)
    assert (found, report.unknown, report.is_clean) == (set(), [], True)
    name = listing.engine.default_storage
    assert report.examined == {
        name: Examined(blobs=9, objects=12, bytes=9_000_000 + sum(len(f"file {n}") for n in range(3, 10))),
        "catalog": Examined(blobs=9),
    }
    assert await contents(listing) == before


@pytest.mark.parametrize("checksum", [False, True])
async def test_every_kind_of_damage_is_told_from_the_others(
    listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path, checksum: bool
) -> None:
    keys = await store_many(listing, 20)
    expected = {
        (MISSING, await damage.lose(keys[0])),
        (TRUNCATED, await damage.replace(keys[1], b"file")),
        (TRUNCATED, await damage.replace(keys[2], b"")),
        (TRUNCATED, await damage.replace(keys[3], b"longer than it was stored")),
        (ORPHAN, await damage.strand()),
        (ORPHAN, await damage.strand(data=b"")),
        (UNREFERENCED, await damage.forget(keys[4])),
    }
    corrupt = (CORRUPT, await damage.replace(keys[5], b"fil e5"))
    before = await contents(listing)
    report, found = await checked(listing, plan, checksum=checksum)
    assert found == expected | ({corrupt} if checksum else set())
    assert report.unknown == []
    assert not report.is_clean
    assert report.count() == len(found)
    assert report.count(TRUNCATED) == 3
    assert await contents(listing) == before


async def test_a_finding_says_what_a_person_has_to_know(binary: bdr.BinaryDataLifecycleManager, plan: Path) -> None:
    damage = Damage(binary)
    key = (await binary.store_data(b"twelve bytes")).file_key
    path = await damage.replace(key, b"ten bytes ")
    orphan = await damage.strand(data=b"nobody's")
    ((blob_id,),) = await rows(binary, "SELECT blob_id FROM bdr.blob")
    await checked(binary, plan)
    by_kind = {one.kind: one for one in findings_in(plan)}
    assert by_kind[TRUNCATED].model_dump(exclude_none=True) == {
        "line": "finding",
        "kind": "truncated",
        "storage": "main",
        "path": path,
        "blob_id": blob_id,
        "size": 12,
        "found_size": 10,
        "references": 1,
        "file_keys": [key],
    }
    assert by_kind[ORPHAN].model_dump(exclude_none=True) == {
        "line": "finding",
        "kind": "orphan",
        "storage": "main",
        "path": orphan,
        "size": 8,
        "file_keys": [],
    }
    await damage.replace(key, b"twelve bytes")
    await damage.storage.delete(orphan)


async def test_everything_below_the_root_is_an_object_without_a_blob(
    listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path
) -> None:
    await store_many(listing, 3)
    places = ["stray", "zz/stray", "ab/below/stray", "logs/2026/11/stray", ".bdr-quarantine/stray", "ab.stray", "abc/d"]
    strays = {(ORPHAN, await damage.strand(path)) for path in places}
    report, found = await checked(listing, plan)
    assert found == strays
    assert report.unknown == []


async def test_names_that_bdr_never_gives_are_orphans_too(connect: Connect, plan: Path) -> None:
    binary = await connect()
    root = folder_of(binary)
    for folder in ("ab", "a folder"):
        (root / folder).mkdir()
    for name in ("two\nlines", "ab/with a blank", "a folder/below"):
        (root / name).touch()
    (root / "ab" / "link").symlink_to(root / "ab")
    _, found = await checked(binary, plan)
    assert found == {(ORPHAN, "two\nlines"), (ORPHAN, "ab/with a blank"), (ORPHAN, "a folder/")}


async def test_the_objects_of_a_storage_below_another_are_its_own(connect: Connect, plan: Path, tmp_path: Path) -> None:
    def config(root: Path) -> bdr.BinaryStorageConfig:
        return bdr.BinaryStorageConfig(storage_type="fs", root=str(root))

    storages = {
        "main": config(tmp_path / "main"),
        "cold": config(tmp_path / "main" / "cold"),
        "in-a-shard": config(tmp_path / "main" / "ab"),
    }
    for default in ("cold", "in-a-shard"):
        await (await connect(storages=storages, default_storage=default)).store_data(b"not main's")
    report, found = await checked(await connect(storages=storages), plan)
    assert found == set()
    assert {(one.storage, *one.parts, one.reason) for one in report.unknown} == {
        ("main", "rest", "cold/ holds the marker of a storage, and what is below it was left out."),
        ("main", "ab", "ab/ holds the marker of a storage, and what is below it was left out."),
    }


async def test_a_live_blob_in_none_of_the_folders_is_looked_up_all_the_same(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    damage = Damage(binary)
    keys = await store_many(binary, 4)
    places = ["00", "zz/far/behind", "ab", ".hidden"]
    for key, place in zip(keys, places, strict=True):
        path = await damage.lose(key)
        if place != "zz/far/behind":
            await damage.strand(place, f"file {keys.index(key)}".encode())
        await change(binary, "UPDATE bdr.blob SET object_path = :new WHERE object_path = :old", new=place, old=path)
    report, found = await checked(binary, plan)
    assert found == {(MISSING, "zz/far/behind")}
    assert report.unknown == []
    assert report.examined["main"].blobs == 4
    await damage.strand("zz/far/behind", b"file 1")


async def test_counts_that_contradict_what_they_count_are_found(connect: Connect, plan: Path) -> None:
    binary = await connect(fsck=FsckConfig(batch_size=2))
    keys = await store_many(binary, 7)
    await without_checks(binary)
    update = "UPDATE bdr.binary_data_reference SET {} WHERE file_key = :key"
    await change(binary, update.format("file_size = 99"), key=keys[0])
    await change(binary, update.format("ref_count = -1"), key=keys[3])
    for holder in ("one", "another"):
        for key in (keys[1], keys[2]):
            await binary.register_reference(key, holder=holder)
    await change(binary, "DELETE FROM bdr.reference_holder WHERE (file_key, holder) = (:key, 'one')", key=keys[2])
    async with binary.engine.database.reading() as connection:
        # As a restore does it that turns off triggers, and with them foreign keys.
        await connection.execute(text("SET session_replication_role = replica"))
        await connection.execute(
            text(
                "UPDATE bdr.blob SET state = 'quarantined' WHERE blob_id = "
                "(SELECT blob_id FROM bdr.binary_data_reference WHERE file_key = :key)"
            ),
            {"key": keys[5]},
        )
        await connection.execute(text("SET session_replication_role = origin"))
    report, _ = await checked(binary, plan)
    assert {(*one.file_keys, one.why, one.found_size, one.size) for one in findings_in(plan)} == {
        (keys[0], "its size is not its blob's", 99, 6),
        (keys[2], "it counts another number of holders than it has", 6, 6),
        (keys[3], "its count is below zero", 6, 6),
        (keys[5], "its blob is not live", 6, 6),
    }
    assert report.findings == {"catalog": {COUNT: 4}}
    assert report.examined["catalog"].blobs == 7
