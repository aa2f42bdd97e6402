"""What cannot be told is unknown, with the reason, and never an orphan; what can be told all the same is told."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bdr
from bdr.errors import ConfigError
from bdr.fsck import FindingKind, resume
from bdr.fsck.findings import PARTS
from tests.fixtures.engines import Connect
from tests.fixtures.proxy import MakeProxy
from tests.fixtures.storages import MakeStorageConfig, S3Server
from tests.fsck.listing_proxy import listing_proxy
from tests.fsck.support import Damage, at_endpoint, checked, found_in, watched
from tests.lifecycle.support import change
from tests.reaper.support import folder_of, path_of, store_many

ORPHAN, MISSING, TRUNCATED, CORRUPT = (
    FindingKind.ORPHAN,
    FindingKind.MISSING,
    FindingKind.TRUNCATED,
    FindingKind.CORRUPT,
)
MIDDLE = "80"
FROM_THE_MIDDLE = list(PARTS[PARTS.index(MIDDLE) :])


async def test_a_listing_that_stops_early_yields_unknown_and_what_stats_prove(
    connect: Connect, make_storage_config: MakeStorageConfig, s3_server: S3Server, plan: Path
) -> None:
    with listing_proxy(s3_server) as proxy:
        binary = await connect(storage=at_endpoint(make_storage_config("s3"), proxy.endpoint))
        damage = Damage(binary)
        left_out, lost, short = await store_many(binary, 3)
        folder = (await path_of(binary, left_out))[:2]
        # Both sort before the one that the listing leaves out.
        hidden = await damage.strand(f"{folder}/0")
        missing = await _moved(binary, await damage.lose(lost), f"{folder}/1")
        truncated = await _moved(binary, await damage.lose(short), f"{folder}/2")
        await damage.strand(truncated, b"file")
        elsewhere = await damage.strand(f"{(int(folder, 16) + 1) % 256:02x}/orphan")
        proxy.short.add(folder)
        report, found = await checked(binary, plan)
        assert found == {(MISSING, missing), (TRUNCATED, truncated), (ORPHAN, elsewhere)}
        ((unknown),) = report.unknown
        assert unknown.parts == [folder]
        assert unknown.reason.startswith("Objects that no blob owns cannot be told: its listing left out ")
        proxy.short.clear()
        _, found = await checked(binary, plan)
        assert (ORPHAN, hidden) in found


async def _moved(binary: bdr.BinaryDataLifecycleManager, path: str, to: str) -> str:
    await change(binary, "UPDATE bdr.blob SET object_path = :to WHERE object_path = :path", path=path, to=to)
    return to


async def test_an_error_in_the_middle_of_a_folder_makes_that_folder_unknown_until_it_is_resumed(
    connect: Connect, make_storage_config: MakeStorageConfig, s3_server: S3Server, plan: Path
) -> None:
    with listing_proxy(s3_server) as proxy:
        binary = await connect(storage=at_endpoint(make_storage_config("s3"), proxy.endpoint))
        damage = Damage(binary)
        (key,) = await store_many(binary, 1)
        lost = await damage.lose(key)
        orphans = [await damage.strand(f"{folder}/orphan") for folder in ("00", "logs", MIDDLE)]
        proxy.failing |= {lost[:2], MIDDLE, "logs"}
        report, found = await checked(binary, plan)
        assert found == {(ORPHAN, orphans[0])}
        assert sorted(part for one in report.unknown for part in one.parts) == sorted({lost[:2], MIDDLE, "rest"})
        assert all("could not list" in one.reason for one in report.unknown)
        assert report.finished
        proxy.failing.clear()
        report = await resume(binary, plan)
        assert report.unknown == []
        assert found_in(plan) == {(MISSING, lost), *((ORPHAN, path) for path in orphans)}


async def test_a_storage_that_goes_down_in_the_middle_is_unknown_from_there(
    connect: Connect, make_storage_config: MakeStorageConfig, s3_server: S3Server, proxy: MakeProxy, plan: Path
) -> None:
    through = await proxy(s3_server.host, s3_server.port)
    config = at_endpoint(make_storage_config("s3"), f"http://{through.host}:{through.port}")
    binary = await connect(storage=config)
    damage = Damage(binary)
    await store_many(binary, 3)
    before, after = [await damage.strand(f"{folder}/orphan") for folder in ("00", "ff")]
    with watched(binary) as storage:
        storage.before_listing[MIDDLE] = through.stop
        report, found = await checked(binary, plan)
    assert found == {(ORPHAN, before)}
    ((unknown),) = report.unknown
    assert unknown.parts == sorted(FROM_THE_MIDDLE)
    assert "check that it runs" in unknown.reason
    await through.start()
    report = await resume(binary, plan)
    assert report.unknown == []
    assert found_in(plan) == {(ORPHAN, before), (ORPHAN, after)}


def unmount(root: Path) -> None:
    root.rename(root.with_name("aside"))
    root.mkdir()


def mount(root: Path) -> None:
    shutil.rmtree(root)
    root.with_name("aside").rename(root)


def exchange(root: Path) -> None:
    text = (root / ".bdr-storage").read_text()
    (root / ".bdr-storage").write_text(text.replace('"main"', '"other"'))


def change_back(root: Path) -> None:
    text = (root / ".bdr-storage").read_text()
    (root / ".bdr-storage").write_text(text.replace('"other"', '"main"'))


@pytest.mark.parametrize("moment", ["before_listing", "after_listing"])
@pytest.mark.parametrize(
    ("away", "back", "told"),
    [(unmount, mount, "not mounted|disappeared"), (exchange, change_back, "is marked as storage 'other'")],
)
async def test_a_share_that_is_suddenly_another_place_is_unknown_from_there(
    binary: bdr.BinaryDataLifecycleManager,
    plan: Path,
    moment: str,
    away: Callable[[Path], None],
    back: Callable[[Path], None],
    told: str,
) -> None:
    damage, root = Damage(binary), folder_of(binary)
    await store_many(binary, 40)
    orphan = await damage.strand(f"{MIDDLE}/orphan")
    with watched(binary) as storage:
        getattr(storage, moment)[MIDDLE] = lambda: away(root)
        report, found = await checked(binary, plan)
    assert found == set()
    ((unknown),) = report.unknown
    assert unknown.parts == sorted(FROM_THE_MIDDLE)
    assert re.search(told, unknown.reason)
    back(root)
    assert (await resume(binary, plan)).unknown == []
    assert found_in(plan) == {(ORPHAN, orphan)}
    await damage.storage.delete(orphan)


async def test_a_storage_that_cannot_list_still_has_its_blobs_checked(
    connect: Connect, make_storage_config: MakeStorageConfig, plan: Path
) -> None:
    binary = await connect(storage=make_storage_config("redis"))
    damage = Damage(binary)
    keys = await store_many(binary, 10)
    await damage.strand()
    expected = {
        (MISSING, await damage.lose(keys[0])),
        (TRUNCATED, await damage.replace(keys[1], b"file")),
        (CORRUPT, await damage.replace(keys[2], b"fil e2")),
    }
    report, found = await checked(binary, plan, checksum=True)
    assert found == expected
    ((unknown),) = report.unknown
    assert unknown.parts == sorted(PARTS)
    assert unknown.reason == "Objects that no blob owns cannot be told: it cannot list its objects."
    assert not report.is_clean


async def test_a_fingerprint_that_differs_makes_the_storage_unknown(
    binary: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    await store_many(binary, 3)
    fingerprint = binary.engine.storage("main").fingerprint
    orphan = await Damage(binary).strand()
    await change(binary, "UPDATE bdr.storage SET fingerprint = 'of another place', root = 'fs:/elsewhere'")
    report, found = await checked(binary, plan)
    assert found == set()
    ((unknown),) = report.unknown
    assert unknown.parts == sorted(PARTS)
    assert "the catalog knows it at fs:/elsewhere" in unknown.reason
    # What was right when it began, and is not when it is resumed.
    location = binary.engine.storage("main").location
    await change(binary, "UPDATE bdr.storage SET fingerprint = :was, root = :at", was=fingerprint, at=location)
    assert "was at fs:/elsewhere when it was checked" in (await resume(binary, plan)).unknown[0].reason
    await Damage(binary).storage.delete(orphan)


async def test_storages_that_this_instance_cannot_reach_are_unknown(
    connect: Connect, make_storage_config: MakeStorageConfig, plan: Path
) -> None:
    cold = await connect(storages={"cold": make_storage_config("fs")}, default_storage="cold")
    memory = await connect(storage=make_storage_config("memory"))
    for binary in (cold, memory):
        await store_many(binary, 2)
    report, found = await checked(await connect(), plan)
    assert found == set()
    reasons = {one.storage.partition("@")[0]: one.reason for one in report.unknown}
    assert "storage 'cold', which is not configured here" in reasons["cold"]
    assert "in the memory of another engine instance" in reasons["main"]
    assert {len(one.parts) for one in report.unknown} == {len(PARTS)}


async def test_only_the_storages_that_were_asked_for_are_checked(
    connect: Connect, make_storage_config: MakeStorageConfig, plan: Path
) -> None:
    both = {"main": make_storage_config("fs"), "cold": make_storage_config("fs")}
    binary = await connect(storages=both)
    for name in both:
        await Damage(binary, name).strand("00/orphan")
    report, _ = await checked(binary, plan, storages=["cold"])
    assert report.findings == {"cold": {ORPHAN: 1}}
    assert set(report.examined) == {"cold", "catalog"}
    with pytest.raises(ConfigError, match="knows no storage 'hot'; it knows cold, main"):
        await checked(binary, plan, storages=["hot"])
