"""A repair does what the plan says where that is still so, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

import bdr
from bdr.errors import OperationError
from bdr.fsck import Finding, FindingKind, Outcome, Result, repair
from bdr.settings import FsckConfig
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, S3Server
from tests.fsck.support import Damage, at_endpoint, bytes_of, checked, repaired, rewrite, without_checks
from tests.fsck.test_fails_closed import change_back, exchange, mount, unmount
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import change, rows
from tests.reaper.support import folder_of, keys_left, records, store_many

REPAIRED, SKIPPED, FAILED = Result.REPAIRED, Result.SKIPPED, Result.FAILED
_QUARANTINED = "SELECT object_path, size, last_error FROM bdr.blob WHERE state = 'quarantined' ORDER BY last_error"


async def test_every_kind_is_repaired_and_nothing_else_is_touched(
    listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path
) -> None:
    keys = await store_many(listing, 12)
    lost = [await damage.lose(key) for key in keys[:2]]
    truncated = await damage.replace(keys[2], b"fi")
    corrupt = await damage.replace(keys[3], b"f!le 3")
    unreferenced = await damage.forget(keys[4])
    orphans = {path: path.encode() for path in ("00/orphan", "ab/below/orphan", "logs/orphan", ".bdr-quarantine/old")}
    for path, data in orphans.items():
        await damage.strand(path, data)
    await change(listing, "UPDATE bdr.binary_data_reference SET file_size = 99 WHERE file_key = :key", key=keys[5])
    # Pinned or not, its bytes are lost.
    await change(listing, "UPDATE bdr.binary_data_reference SET pinned = true WHERE file_key = :key", key=keys[0])

    await checked(listing, plan, checksum=True)
    assert {result for _, result in await repaired(listing, plan)} == {REPAIRED}

    assert await keys_left(listing) == set(keys[5:])
    assert [await listing.get_data(key) for key in keys[5:]] == [f"file {n}".encode() for n in range(5, 12)]
    assert (await listing.get_metadata(keys[5])).file_size == 6
    # The check itself is a record of this type too, and about no key.
    deleted = [one for one in await records(listing, "fsck") if one[0] is not None]
    assert sorted((key, status, detail["rule"], detail["finding"]) for key, status, _, detail in deleted) == sorted(
        (key, "succeeded", "fsck", finding)
        for key, finding in zip(keys, ["missing", "missing", "truncated", "corrupt"], strict=False)
    )
    left = "SELECT object_path, state FROM bdr.blob WHERE object_path = ANY(:paths)"
    assert set(await rows(listing, left, paths=[*lost, unreferenced, truncated, corrupt])) == {
        *((path, "deleting") for path in (*lost, unreferenced)),
        *((path, "quarantined") for path in (truncated, corrupt)),
    }
    assert await damage.storage.retrieve(corrupt) == b"f!le 3"
    moved = {path: error for path, _, error in await rows(listing, _QUARANTINED) if path.startswith(".bdr-quarantine/")}
    told = {f"fsck found it without an owner, at {path}": data for path, data in orphans.items()}
    assert {error: await damage.storage.retrieve(path) for path, error in moved.items()} == told

    await listing.reap()
    report, found = await checked(listing, plan, checksum=True)
    assert (found, report.is_clean) == (set(), True)
    assert await violations(listing.engine.database, listing.engine.storages) == []


async def test_a_repair_may_be_repeated(listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path) -> None:
    keys = await store_many(listing, 3)
    await damage.lose(keys[0])
    await damage.replace(keys[1], b"")
    await damage.forget(keys[2])
    await damage.strand()
    await checked(listing, plan)
    assert {result for _, result in await repaired(listing, plan)} == {REPAIRED}
    before = await rows(listing, "SELECT * FROM bdr.blob ORDER BY 1")
    assert {result for _, result in await repaired(listing, plan)} == {SKIPPED}
    assert await rows(listing, "SELECT * FROM bdr.blob ORDER BY 1") == before
    assert len([key for key, *_ in await records(listing, "fsck") if key is not None]) == 2


async def test_what_is_not_so_any_more_is_skipped_and_said(
    listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path
) -> None:
    keys = await store_many(listing, 7)
    lost = await damage.lose(keys[0])
    truncated = await damage.replace(keys[1], b"fi")
    worse = await damage.replace(keys[6], b"fi")
    corrupt = await damage.replace(keys[2], b"f!le 2")
    await damage.lose(keys[3])
    ((blob_id,),) = await rows(
        listing, "SELECT blob_id FROM bdr.binary_data_reference WHERE file_key = :key", key=keys[4]
    )
    unreferenced = await damage.forget(keys[4])
    orphans = [await damage.strand(path) for path in ("00/gone", "01/owned", "02/marked/below")]
    await change(listing, "UPDATE bdr.binary_data_reference SET file_size = 99 WHERE file_key = :key", key=keys[5])
    _, found = await checked(listing, plan, checksum=True)
    assert len(found) == 10

    # A person had a backup, a user deleted, an upload came back, somebody made a reference.
    await damage.storage.store(lost, b"file 0")
    await damage.replace(keys[1], b"file 1")
    await damage.replace(keys[2], b"file 2")
    await damage.lose(keys[6])
    await listing.delete_data(keys[3])
    await change(
        listing,
        "INSERT INTO bdr.binary_data_reference (file_key, blob_id, mime_kind, file_size, ref_count) "
        "VALUES (:key, :blob_id, 'text/plain', 6, 1)",
        key=keys[4],
        blob_id=blob_id,
    )
    await damage.storage.delete(orphans[0])
    insert = """
        INSERT INTO bdr.blob (blob_id, storage_name, object_path, state, instance_id, next_attempt_at)
        VALUES (gen_random_uuid(), :storage, :path, 'deleting', gen_random_uuid(), now() + interval '1 day')
    """
    await change(listing, insert, path=orphans[1], storage=listing.engine.default_storage)
    await damage.strand("02/marked/.bdr-storage", b"of another storage")
    await change(listing, "UPDATE bdr.binary_data_reference SET file_size = 6 WHERE file_key = :key", key=keys[5])

    outcomes: list[Outcome] = []
    report = await repair(listing, plan, on_outcome=outcomes.append)
    assert report.count(SKIPPED) == len(outcomes) == 10
    assert report.references == 0
    reasons = {(one.finding.path or one.finding.file_keys[0]): one.why for one in outcomes}
    assert reasons[lost] == "it is not missing any more"
    assert reasons[truncated] == reasons[worse] == "it is not truncated any more"
    assert reasons[corrupt] == "it is not corrupt any more"
    assert reasons[unreferenced] == "it is not unreferenced any more"
    assert reasons[orphans[0]] == "it is not there any more"
    assert reasons[orphans[1]] == "it has a blob by now, which is deleting"
    assert reasons[orphans[2]] == "02/marked/ holds the marker of a storage, to which it belongs"
    assert reasons[keys[5]] == "it agreed already, or was deleted"
    assert await keys_left(listing) == {*keys} - {keys[3]}
    assert [await listing.get_data(key) for key in keys[:3]] == [b"file 0", b"file 1", b"file 2"]
    assert await damage.storage.retrieve(orphans[2]) == b"nobody's"
    assert await rows(listing, _QUARANTINED) == []


async def test_a_plan_that_names_another_blob_than_the_one_at_its_path_harms_neither(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    damage = Damage(binary)
    keys = await store_many(binary, 2)
    path = await damage.lose(keys[0])
    await checked(binary, plan)
    blobs = dict(await rows(binary, "SELECT object_path = :path, blob_id::text FROM bdr.blob", path=path))
    rewrite(plan, bytes_of(plan).replace(blobs[True].encode(), blobs[False].encode()))
    assert await repaired(binary, plan) == [(f"missing {path}", SKIPPED)]
    assert await keys_left(binary) == {*keys}
    await damage.strand(path, b"file 0")


async def test_what_bdr_cannot_name_is_left_to_a_person(connect: Connect, plan: Path) -> None:
    binary = await connect()
    (folder_of(binary) / "two words").touch()
    await checked(binary, plan)
    assert await repaired(binary, plan) == [("orphan two words", SKIPPED)]
    assert (folder_of(binary) / "two words").exists()


async def test_a_place_in_quarantine_that_is_being_deleted_takes_nothing(
    listing: bdr.BinaryDataLifecycleManager, damage: Damage, plan: Path
) -> None:
    path = await damage.strand()
    await checked(listing, plan)
    await repaired(listing, plan)
    # The move was by a copy, whose process died before its end; and a person has decided about the copy.
    await damage.strand(path)
    await change(listing, "UPDATE bdr.blob SET state = 'deleting', next_attempt_at = now()")
    assert await repaired(listing, plan) == [(f"orphan {path}", SKIPPED)]
    assert await damage.storage.exists(path)


async def test_counts_that_cannot_be_known_are_left_to_a_person(connect: Connect, plan: Path) -> None:
    binary = await connect()
    (key,) = await store_many(binary, 1)
    await without_checks(binary)
    await change(binary, "UPDATE bdr.binary_data_reference SET ref_count = -1")
    await checked(binary, plan)
    assert await repaired(binary, plan) == [("count None", SKIPPED)]
    assert await rows(binary, "SELECT ref_count FROM bdr.binary_data_reference") == [(-1,)]
    assert await keys_left(binary) == {key}


async def test_a_count_of_holders_becomes_what_there_are_and_leaves_the_others(connect: Connect, plan: Path) -> None:
    binary = await connect()
    keys = await store_many(binary, 2)
    for key in keys:
        await binary.register_reference(key)
        for holder in ("one", "another", "a third"):
            await binary.register_reference(key, holder=holder)
    await change(binary, "DELETE FROM bdr.reference_holder WHERE holder <> 'one' AND file_key = :key", key=keys[0])
    await change(
        binary,
        "INSERT INTO bdr.reference_holder (file_key, holder) SELECT :key, 'more ' || n FROM generate_series(1, 4) n",
        key=keys[1],
    )
    await checked(binary, plan)
    assert [result for _, result in await repaired(binary, plan)] == [REPAIRED, REPAIRED]
    counts = "SELECT file_key, ref_count, holder_count FROM bdr.binary_data_reference"
    assert set(await rows(binary, counts)) == {(keys[0], 2 + 1, 1), (keys[1], 2 + 7, 7)}
    assert [result for _, result in await repaired(binary, plan)] == [SKIPPED, SKIPPED]
    assert (await checked(binary, plan))[0].is_clean


async def test_a_storage_that_is_down_fails_its_items_and_they_can_be_repaired_later(
    connect: Connect, make_storage_config: MakeStorageConfig, s3_server: S3Server, proxy: MakeProxy, plan: Path
) -> None:
    through = await proxy(s3_server.host, s3_server.port)
    binary = await connect(storage=at_endpoint(make_storage_config("s3"), f"http://{through.host}:{through.port}"))
    damage = Damage(binary)
    (key,) = await store_many(binary, 1)
    lost, orphan = await damage.lose(key), await damage.strand()
    await checked(binary, plan)
    through.stop()
    assert await repaired(binary, plan) == [(f"missing {lost}", FAILED), (f"orphan {orphan}", FAILED)]
    assert await keys_left(binary) == {key}
    await through.start()
    assert await repaired(binary, plan) == [(f"missing {lost}", REPAIRED), (f"orphan {orphan}", REPAIRED)]


@pytest.mark.parametrize(("away", "back"), [(unmount, mount), (exchange, change_back)])
async def test_another_place_is_not_taken_for_one_that_has_lost_everything(
    connect: Connect, plan: Path, away: Callable[[Path], None], back: Callable[[Path], None]
) -> None:
    binary = await connect()
    damage = Damage(binary)
    keys = await store_many(binary, 5)
    lost, orphan = await damage.lose(keys[0]), await damage.strand()
    await checked(binary, plan)
    # A plan that says of all that they are missing, as one would that was made by something less careful.
    blobs = await rows(binary, "SELECT object_path, blob_id FROM bdr.blob WHERE object_path <> :lost", lost=lost)
    more = [Finding(kind=FindingKind.MISSING, storage="main", path=path, blob_id=blob_id) for path, blob_id in blobs]
    header, *lines = bytes_of(plan).splitlines(keepends=True)
    rewrite(plan, b"".join([header, *(one.model_dump_json().encode() + b"\n" for one in more), *lines]))
    away(folder_of(binary))
    assert {result for _, result in await repaired(binary, plan)} == {FAILED}
    assert await keys_left(binary) == {*keys}
    back(folder_of(binary))
    assert sorted(await repaired(binary, plan)) == sorted(
        [(f"missing {lost}", REPAIRED), (f"orphan {orphan}", REPAIRED)]
        + [(f"missing {path}", SKIPPED) for path, _ in blobs]
    )


async def test_a_reader_is_told_first_that_it_is_lost_and_then_that_it_was_removed(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    (key,) = await store_many(binary, 1)
    await Damage(binary).lose(key)
    with pytest.raises(bdr.Lost):
        await binary.get_data(key)
    await checked(binary, plan)
    await repair(binary, plan)
    with pytest.raises(bdr.Gone, match="was removed by a repair, for its object was missing or broken"):
        await binary.get_data(key)


LIMITS = FsckConfig(max_share=0.1, max_items=2)


@pytest.mark.parametrize(
    ("stored", "orphans", "lost", "allowed"),
    [
        (10, 2, 0, True),  # no more than max_items, whatever the share
        (40, 3, 1, True),  # a tenth, and no more
        (40, 3, 2, False),
        (10, 3, 0, False),
        (10, 0, 3, False),
        (0, 3, 0, False),  # a catalog that was restored empty
        (0, 2, 0, True),
    ],
)
async def test_a_plan_for_a_large_share_has_to_be_confirmed(
    connect: Connect, plan: Path, stored: int, orphans: int, lost: int, allowed: bool
) -> None:
    binary = await connect(fsck=LIMITS)
    damage = Damage(binary)
    keys = await store_many(binary, stored)
    for key in keys[:lost]:
        await damage.lose(key)
    for _ in range(orphans):
        await damage.strand()
    await checked(binary, plan)
    objects = await objects_in(damage.storage)
    if not allowed:
        with pytest.raises(OperationError, match=r"fsck\.max_share.*fsck\.max_items.*confirm the repair"):
            await repair(binary, plan)
        assert await objects_in(damage.storage) == objects
        assert await keys_left(binary) == {*keys}
    report = await repair(binary, plan, confirmed=not allowed)
    assert report.count(REPAIRED) == orphans + lost


async def test_the_share_is_that_of_each_storage(
    connect: Connect, make_storage_config: MakeStorageConfig, plan: Path
) -> None:
    storages = {"main": make_storage_config("fs"), "cold": make_storage_config("fs")}
    cold = await connect(storages=storages, default_storage="cold")
    binary = await connect(storages=storages, fsck=LIMITS)
    await store_many(binary, 60)
    for key in await store_many(cold, 3):
        await Damage(cold, "cold").lose(key)
    await checked(binary, plan)
    with pytest.raises(OperationError, match="change 3 things, and there are 3 blobs of storage 'cold'"):
        await repair(binary, plan)


async def test_counts_have_a_share_too(connect: Connect, plan: Path) -> None:
    binary = await connect(fsck=LIMITS)
    await store_many(binary, 5)
    await change(binary, "UPDATE bdr.binary_data_reference SET file_size = 99")
    await checked(binary, plan)
    with pytest.raises(OperationError, match="5 references of the catalog"):
        await repair(binary, plan)
    assert (await repair(binary, plan, confirmed=True)).results == {REPAIRED: {FindingKind.COUNT: 5}}
