import os
import signal
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from sqlalchemy import text

import bdr
from bdr.catalog.database import Database
from bdr.storage.paths import MARKER_PATH
from tests.cli.programs import Command, Inside
from tests.storage.helpers import until

MiB = 1024 * 1024
WAITS: Final = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
PATIENT: Final = {"BDR_DATABASE__LOCK_TIMEOUT": "2min", "BDR_DATABASE__STATEMENT_TIMEOUT": "2min"}


async def stored(inside: Inside, command: Command, *names: str) -> dict[str, Path]:
    """Files that were put, each with its name as its bytes: where the object of each lies."""
    root = command.environment["BDR_STORAGE__ROOT"]
    for path in (command.folder / name for name in names):
        path.write_text(path.name)
    await inside("put", *names)
    known = [(await inside("stat", cells[0], "--json")).json for cells in (await inside("ls")).cells]
    return {one["reference"]["file_name"]: Path(root) / one["object_path"] for one in known}


async def test_all_is_well_ends_with_0_and_leaves_a_plan_only_where_one_was_named(
    inside: Inside, key: str, command: Command
) -> None:
    well = await inside("fsck", "--checksum")
    assert (well.code, well.errors) == (0, "")
    assert well.cells == [
        ["main", "examined", "1", "blobs with 24 B, and 1 object"],
        ["catalog", "examined", "1", "references"],
    ]
    told = (await inside("fsck", "--json", "--storage", "main")).json
    assert (told["plan"], told["is_clean"], told["finished"], told["findings"]) == (None, True, True, {})
    assert not list(command.folder.glob("*.plan"))
    assert (await inside("fsck", "-o", "kept.plan")).code == 0
    again = await inside("fsck", "--plan", "kept.plan")
    assert (again.code, again.errors) == (
        2,
        "bdr: There is a file kept.plan already; resume that plan, or give another name.\n",
    )
    unknown = await inside("fsck", "--storage", "other")
    assert (unknown.code, unknown.errors) == (1, "bdr: The catalog knows no storage 'other'; it knows main.\n")


async def test_what_differs_is_counted_listed_and_repaired_by_the_plan(
    inside: Inside, fs_config: bdr.BinaryStorageConfig, database: Database, command: Command
) -> None:
    names = ("good", "missing", "truncated", "corrupt", "count")
    objects = await stored(inside, command, *names)
    objects["missing"].unlink()
    objects["truncated"].write_text("trunc")
    objects["corrupt"].write_text("CORRUPT")
    stray = Path(fs_config.root) / "ab" / "stray"
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("nobody's")
    wrong = "UPDATE bdr.binary_data_reference SET file_size = 99 WHERE file_name = 'count'"
    await database.write(lambda own: own.execute(text(wrong)))

    checked = await inside("fsck", "--checksum", "-o", "a plan")
    assert checked.code == 1
    assert {tuple(cells[:3]) for cells in checked.cells} == {
        ("main", "examined", "5"),
        *(("main", kind, "1") for kind in ("missing", "truncated", "corrupt", "orphan")),
        ("catalog", "examined", "5"),
        ("catalog", "count", "1"),
    }
    assert checked.errors == (
        "bdr: 5 differences. Look at them with `bdr fsck --show 'a plan'`; `bdr fsck --repair 'a plan'` repairs them.\n"
    )
    assert objects["truncated"].read_text() == "trunc"

    shown = await inside("fsck", "--show", "a plan", BDR_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")
    assert (shown.code, shown.errors) == (1, checked.errors)
    listed = {cells[0]: cells[1:] for cells in shown.cells}
    assert listed["orphan"] == ["main", "ab/stray", "8 B"]
    assert listed["truncated"][2].startswith("9 B; 5 B found; 1 reference; such as ")
    assert [one["kind"] for one in (await inside("fsck", "--show", "a plan", "--json")).json] == [
        cells[0] for cells in shown.cells
    ]

    repaired = await inside("fsck", "--repair", "a plan")
    assert (repaired.code, repaired.errors) == (0, "")
    kinds = ("missing", "truncated", "corrupt", "orphan", "count")
    assert sorted(repaired.cells) == sorted(
        [*(["repaired", kind, "1"] for kind in kinds), ["deleted", "references whose bytes are lost", "3"]]
    )
    assert sorted(cells[-1] for cells in (await inside("ls")).cells) == ["count", "good"]
    gone = await inside("fsck", "--repair", "a plan", "--json")
    assert (gone.code, gone.json["results"]) == (1, {"skipped": dict.fromkeys(gone.json["results"]["skipped"], 1)})
    assert "bdr: skipped: orphan ab/stray in main: it is not there any more\n" in gone.errors
    assert len(gone.errors.splitlines()) == 5
    assert (await inside("fsck")).code == 0


async def test_a_plan_for_much_of_a_storage_is_repaired_when_that_is_confirmed(
    inside: Inside, command: Command
) -> None:
    objects = await stored(inside, command, "one", "two")
    objects["one"].unlink()
    await inside("fsck", "-o", "fsck.plan")
    strict = {"BDR_FSCK__MAX_ITEMS": "0", "BDR_FSCK__MAX_SHARE": "0.1"}
    refused = await inside("fsck", "--repair", "fsck.plan", **strict)
    assert (refused.code, refused.output) == (1, b"")
    first, second = refused.errors.splitlines()
    assert first.startswith("bdr: The plan is to change 1 things, and there are 2 blobs of storage 'main'")
    assert second == "bdr: Nothing was changed; `bdr fsck --repair fsck.plan --confirm` repairs it all the same."
    assert len((await inside("ls")).cells) == 2
    assert (await inside("fsck", "--repair", "fsck.plan", "--confirm", **strict)).code == 0
    assert len((await inside("ls")).cells) == 1


async def test_what_cannot_be_told_is_said_with_its_reason_and_looked_at_again(
    inside: Inside, key: str, fs_config: bdr.BinaryStorageConfig, command: Command
) -> None:
    marker = Path(fs_config.root) / MARKER_PATH
    kept = marker.read_text()
    marker.unlink()
    untold = await inside("fsck", "--log-level", "error")
    assert untold.code == 1
    (plan,) = command.folder.glob("fsck-*.plan")
    storage, result, count, reason = untold.cells[-1]
    assert (storage, result, count) == ("main", "unknown", "257")
    assert reason.startswith("parts of the storage: ")
    assert untold.errors.endswith(f"`bdr fsck --resume {plan.name}` looks again.\n")
    marker.write_text(kept)
    again = await inside("fsck", "--resume", plan.name, "--json")
    assert (again.code, again.json["is_clean"], again.json["plan"]) == (0, True, plan.name)
    assert again.errors == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_check_that_was_broken_off_says_how_it_goes_on_and_does(
    command: Command, inside: Inside, key: str, database_url: str, number: signal.Signals
) -> None:
    connection = await asyncpg.connect(database_url)

    async def is_waiting() -> bool:
        # In a transaction, what was seen once is seen again.
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        return await connection.fetchval(WAITS) is not None

    try:
        async with command.running("fsck", "-o", "fsck.plan", **PATIENT) as checking, connection.transaction():
            await connection.execute("LOCK TABLE bdr.binary_data_reference")
            await until(is_waiting, 60)
            checking.process.send_signal(number)
            assert await checking.ended() == 128 + number
        async with connection.transaction():
            await connection.execute("LOCK TABLE bdr.binary_data_reference")
            busy = await inside("fsck", "--resume", "fsck.plan", BDR_DATABASE__LOCK_TIMEOUT="50ms")
    finally:
        await connection.close()
    hint = "bdr: The check was broken off; `bdr fsck --resume fsck.plan` goes on where it was.\n"
    assert checking.log == hint
    assert (busy.code, busy.output) == (1, b"")
    assert busy.errors.startswith(hint)
    unfinished = await inside("fsck", "--repair", "fsck.plan")
    assert (unfinished.code, unfinished.output) == (2, b"")
    assert unfinished.errors.endswith("has not come to its end; resume it first.\n")
    shown = await inside("fsck", "--show", "fsck.plan")
    assert shown.errors == "bdr: The check has not come to its end; `bdr fsck --resume fsck.plan` goes on.\n"
    assert (await inside("fsck", "--resume", "fsck.plan")).code == 0


async def test_a_terminal_shows_a_bar_while_bytes_are_compared_and_a_pipe_nothing(command: Command) -> None:
    (command.folder / "big.bin").write_bytes(os.urandom(8 * MiB))
    await command("put", "big.bin")
    checked, terminal = await command.on_terminal("fsck", "--checksum", streams=("stderr",))
    assert checked.code == 0
    assert "Checking" in terminal
    assert "of 8.0 MiB" in terminal
    quiet = await command("fsck", "--checksum")
    assert (quiet.code, quiet.errors) == (0, "")
