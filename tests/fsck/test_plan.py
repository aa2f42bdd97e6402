"""The plan: what ends a check, at whatever byte, loses nothing of the parts that were done."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest

import bdr
from bdr.errors import CatalogUnavailable, InstanceClosed, InvalidArgument, IoError, StorageMismatch
from bdr.fsck import FindingKind, check, repair, resume, summary
from bdr.fsck.findings import PARTS
from tests.fixtures.engines import Connect
from tests.fixtures.postgres import PostgresServer
from tests.fsck.support import Damage, bytes_of, checked, found_in, rewrite, watched
from tests.guarantees import violations
from tests.lifecycle.conftest import ConnectThrough
from tests.lifecycle.support import change, rows
from tests.reaper.support import folder_of, records, store_many
from tests.storage.helpers import PROJECT, until

ORPHAN = FindingKind.ORPHAN
# Each part that is begun is told, and waits until it may go on.
SLOWLY = """
import asyncio, sys
from pathlib import Path
import bdr
from bdr.fsck import check
from tests.fsck.support import Watched

class Slow(Watched):
    async def list_objects(self, folder="", *, recursive=True):
        print(folder, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        async for found in self._storage.list_objects(folder, recursive=recursive):
            yield found

async def main():
    url, root, plan = sys.argv[1:]
    config = bdr.BinaryStorageConfig(storage_type="fs", root=root)
    async with bdr.connect(database_url=url, storage=config) as binary:
        binary.engine.storages["main"] = Slow(binary.engine.storages["main"])
        await check(binary, Path(plan))
asyncio.run(main())
"""


async def killed_in(part: str, *arguments: str) -> None:
    """Run a check in a process of its own, and kill it when it has begun with `part`."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = (sys.executable, "-c", SLOWLY, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    while (begun := (await process.stdout.readline()).decode().strip()) != part:
        assert begun in PARTS
        process.stdin.write(b"\n")
    process.kill()
    assert await process.wait() == -signal.SIGKILL


async def scattered(binary: bdr.BinaryDataLifecycleManager, folders: tuple[str, ...]) -> set[tuple[FindingKind, str]]:
    damage = Damage(binary)
    return {(ORPHAN, await damage.strand(f"{folder}/orphan")) for folder in folders}


@pytest.fixture
async def clean(connect: Connect) -> bdr.BinaryDataLifecycleManager:
    """An engine with a few files on an fs storage, of which nothing is checked at the end."""
    binary = await connect()
    await store_many(binary, 30)
    return binary


async def test_a_check_that_was_killed_goes_on_where_it_was(
    clean: bdr.BinaryDataLifecycleManager, database_url: str, plan: Path
) -> None:
    expected = await scattered(clean, ("00", "7f", "80", "81", "ff"))
    await killed_in("80", database_url, str(folder_of(clean)), str(plan))
    lines = bytes_of(plan).splitlines(keepends=True)
    assert len(lines) == 1 + 128 + 2
    half = summary(plan)
    assert (half.finished, half.count()) == (False, 2)
    # As if it had been killed in the middle of a write, after some findings of the part that was under way.
    rewrite(plan, b"".join([*lines, lines[1], lines[2][: len(lines[2]) // 2]]))
    assert summary(plan).count() == 2
    with pytest.raises(InvalidArgument, match="has not come to its end"):
        await repair(clean, plan)
    report = await resume(clean, plan)
    assert report == summary(plan)
    assert found_in(plan) == expected
    whole, found = await checked(clean, plan)
    assert found == expected
    assert report.model_copy(update={"begun_at": whole.begun_at}) == whole


@pytest.mark.parametrize("cut", [lambda data, line: data[: len(line) + 1], lambda data, line: data[:-1]])
async def test_nothing_is_lost_wherever_the_file_ends(
    clean: bdr.BinaryDataLifecycleManager, plan: Path, cut: Callable[[bytes, bytes], bytes]
) -> None:
    expected = await scattered(clean, ("00", "ff", "logs"))
    await checked(clean, plan)
    data = bytes_of(plan)
    rewrite(plan, cut(data, data.splitlines()[0]))
    assert not summary(plan).finished
    assert (await resume(clean, plan)).finished
    assert found_in(plan) == expected


async def test_a_finished_plan_may_be_resumed_and_stays_as_it_is(
    clean: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    await scattered(clean, ("00",))
    report, _ = await checked(clean, plan)
    assert await resume(clean, plan) == report


async def test_a_line_that_is_none_of_a_plan_is_told_by_its_number(
    clean: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    await scattered(clean, ("00",))
    await checked(clean, plan)
    lines = bytes_of(plan).decode().splitlines()
    for wrong in ("{}", "not json", '{"line": "done"}', lines[0], json.dumps({**json.loads(lines[1]), "more": 1})):
        rewrite(plan, "\n".join([*lines[:3], wrong, *lines[3:], ""]).encode())
        for use in (repair(clean, plan), asyncio.to_thread(summary, plan)):
            with pytest.raises(InvalidArgument, match="its line 4 is not right"):
                await use
    # To a check it is the end of what is good.
    assert (await resume(clean, plan)).count() == 1


@pytest.mark.parametrize("text", [b"", b"\n", b"{}", b'{"line": "finished", "finished_at": "2026-01-01T00:00:00Z"}\n'])
async def test_a_file_that_is_no_plan_is_refused(
    clean: bdr.BinaryDataLifecycleManager, plan: Path, text: bytes
) -> None:
    rewrite(plan, text)
    for use in (resume(clean, plan), repair(clean, plan)):
        with pytest.raises(InvalidArgument, match="no plan of fsck"):
            await use
    assert bytes_of(plan) == text


async def test_a_plan_is_a_new_file_that_can_be_made(clean: bdr.BinaryDataLifecycleManager, plan: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no folder"):
        await check(clean, plan / "below")
    for use in (resume(clean, plan), repair(clean, plan)):
        with pytest.raises(InvalidArgument, match="There is no plan"):
            await use
    rewrite(plan, b"something else")
    with pytest.raises(InvalidArgument, match=r"There is a file .* already"):
        await check(clean, plan)
    assert bytes_of(plan) == b"something else"
    with pytest.raises(IoError, match="cannot be written"):
        await check(clean, plan / "below")


async def test_two_do_not_write_one_plan(clean: bdr.BinaryDataLifecycleManager, plan: Path) -> None:
    async def another() -> None:
        with pytest.raises(InvalidArgument, match="is being written by a check that is under way"):
            await resume(clean, plan)

    with watched(clean) as storage:
        storage.before_listing["80"] = another
        assert (await check(clean, plan)).is_clean


async def test_the_plan_of_another_catalog_is_refused(
    clean: bdr.BinaryDataLifecycleManager, postgres: PostgresServer, plan: Path, tmp_path: Path
) -> None:
    await scattered(clean, ("00",))
    await checked(clean, plan)
    before = bytes_of(plan)
    name = await postgres.create_database()
    config = bdr.BinaryStorageConfig(storage_type="fs", root=str(tmp_path / "other"))
    async with bdr.connect(database_url=postgres.url(name), storage=config, migrate_on_start=True) as other:
        for use in (resume(other, plan), repair(other, plan)):
            with pytest.raises(StorageMismatch, match="The plan is about catalog"):
                await use
    assert bytes_of(plan) == before
    await postgres.drop_database(name)


async def test_a_storage_that_is_elsewhere_by_now_is_not_repaired(
    clean: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    await scattered(clean, ("00",))
    await checked(clean, plan)
    await change(clean, "UPDATE bdr.storage SET fingerprint = 'of another place', root = 'fs:/elsewhere'")
    with pytest.raises(StorageMismatch, match="the catalog knows it at fs:/elsewhere now"):
        await repair(clean, plan)


async def test_a_check_and_a_repair_are_recorded_with_what_they_found(
    clean: bdr.BinaryDataLifecycleManager, plan: Path
) -> None:
    await scattered(clean, ("00",))
    progress: list[bdr.OperationProgress] = []
    await checked(clean, plan, on_progress=progress.append)
    await repair(clean, plan)
    ((_, status, _, detail),) = await records(clean, "fsck")
    assert status == "succeeded"
    assert detail["findings"] == {"main": {"orphan": 1}}
    assert detail["examined"]["main"] == {"blobs": 30, "objects": 31, "bytes": 200}
    ((_, status, _, detail),) = await records(clean, "fsck_repair")
    assert (status, detail) == ("succeeded", {"results": {"repaired": {"orphan": 1}}, "references": 0})
    last = progress[-1]
    assert (last.operation_type, last.completion_percentage, last.total_bytes) == ("fsck", 100.0, 200)
    assert await rows(clean, "SELECT count(*) FROM bdr.operation WHERE operation_type LIKE 'fsck%'") == [(2,)]
    assert await violations(clean.engine.database, clean.engine.storages) == []


async def test_a_catalog_that_goes_away_ends_the_check_and_it_can_be_resumed(
    clean: bdr.BinaryDataLifecycleManager, connect_through: ConnectThrough, plan: Path
) -> None:
    expected = await scattered(clean, ("00", "ff"))
    binary, between = await connect_through()
    with watched(binary) as storage:
        storage.after_listing["80"] = between.stop
        with pytest.raises(CatalogUnavailable):
            await check(binary, plan)
    half = summary(plan)
    assert (half.finished, half.unknown, half.count()) == (False, [], 1)
    await between.start()
    assert (await resume(clean, plan)).finished
    assert found_in(plan) == expected

    async def recorded() -> bool:
        return [status for _, status, _, _ in await records(clean, "fsck")] == ["failed", "succeeded"]

    await until(recorded)


async def test_a_closed_engine_checks_nothing(clean: bdr.BinaryDataLifecycleManager, plan: Path) -> None:
    await checked(clean, plan)
    clean.engine.close("closed by the test")
    for use in (check(clean, plan.with_name("new")), resume(clean, plan), repair(clean, plan)):
        with pytest.raises(InstanceClosed, match="closed by the test"):
            await use
