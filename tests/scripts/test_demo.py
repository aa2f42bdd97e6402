"""The demo does its job and leaves nothing behind; whatever is wrong ends it with a sentence that says what."""

import asyncio
import os
import re
import resource
import signal
from pathlib import Path

import asyncpg
import pytest

from tests.scripts.conftest import RunningDemo, StartDemo, is_any_alive
from tests.storage.helpers import until

STEPS = [
    "Engine 1 stores the files.",
    "Engine 2 gets only the references, registers each and reads it back.",
    "Engine 3 releases each twice: for engine 1, which stored it, and for engine 2.",
    "The reapers delete what nobody has referred to for 1 s.",
]
LIMIT = 20 << 20


async def gone(*pids: int) -> None:
    """Return when none of these processes is there any more."""

    async def none_is_alive() -> bool:
        return not await asyncio.to_thread(is_any_alive, pids)

    await until(none_is_alive, seconds=60)


async def postmaster(demo: RunningDemo) -> int:
    """The process id of its PostgreSQL."""
    (status,) = await asyncio.to_thread(list, demo.folder.glob("postgres/*/postmaster.pid"))
    return int(status.read_text().splitlines()[0])


async def test_the_demo_shows_each_step_and_leaves_nothing_behind(start_demo: StartDemo) -> None:
    demo = await start_demo("--stream-mib", "1")
    pids = await demo.pids()
    server = await postmaster(demo)
    assert list(pids) == ["engine 1", "engine 2", "engine 3", "reaper 1", "reaper 2"]
    code, errors = await demo.end()
    assert (code, errors) == (0, "")
    assert demo.lines[0] == "13 files, 1.2 MiB: a document of each kind, and a stream."
    assert [line for line in demo.lines if line in STEPS] == STEPS
    assert [line for line in demo.lines if line.startswith("  Checked: ")] == [
        "  Checked: 13 references with count 1, as many live blobs and objects of their sizes.",
        "  Checked: each SHA-256 is that of the original.",
        "  Checked: 13 references with count 2, as many live blobs and objects of their sizes.",
        "  Checked: every count went from 2 to 1 to 0.",
        "  Checked: no reference, no blob, no object but the storage's marker; each file was reaped once.",
    ]
    assert re.fullmatch(r"All is well: 13 files, 1\.2 MiB, [\d.]+ s in all\.", demo.lines[-2])
    taken = re.findall(r"reaper \d took (\d+)", "\n".join(demo.lines))
    assert sum(map(int, taken)) == 13
    assert list(demo.home.iterdir()) == []
    await gone(server, *pids.values())


async def test_files_of_any_name_come_from_a_folder_and_nothing_of_the_users_is_used(
    start_demo: StartDemo, tmp_path: Path
) -> None:
    files = tmp_path / "my files"
    (files / "below").mkdir(parents=True)
    for name in ("plain.txt", "below/with 'quotes' and $(x)", "two\nlines", "größe-🎉.json", ".hidden"):
        (files / name).write_bytes(b"x" * 1000)
    (files / "below" / "empty").touch()
    (files / "dangling").symlink_to("nowhere")
    (files / "again").symlink_to(files)
    (files / "vanishes").touch()
    (tmp_path / "bdr.toml").write_text("bogus = 1\n")
    environment = {
        "BDR_BOGUS": "1",
        "BDR_DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "BDR_CONFIG": str(tmp_path / "none"),
        "PGHOST": "nowhere.invalid",
        "PGTARGETSESSIONATTRS": "standby",
        "PYTHONPATH": str(files),
        "PYTHONWARNINGS": "error",
    }
    demo = await start_demo("my files", env=environment, cwd=tmp_path)
    await demo.says("PostgreSQL starts")
    (files / "vanishes").unlink()
    code, errors = await demo.end()
    assert (code, errors) == (0, "")
    assert f"Left out: {files}/dangling: No such file or directory" in demo.lines
    assert f"  Left out: {files}/vanishes: No such file or directory" in demo.lines
    assert re.fullmatch(r"All is well: 6 files, 4\.9 KiB, [\d.]+ s in all, 2 left out\.", demo.lines[-2])
    assert sorted(path.name for path in files.iterdir()) == [
        ".hidden", "again", "below", "dangling", "größe-🎉.json", "plain.txt", "two\nlines"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["there is none"], "there is none: No such file or directory"),
        (["/etc/passwd", ""], "an empty name: No such file or directory"),
        (["/dev/zero"], "/dev/zero: this is no regular file"),
        (["red\x1b[31m\n"], "red\ufffd[31m\ufffd: No such file or directory"),
        (["."], "there is no file that can be read in ."),
        (["--stream-mib", "-1"], "--stream-mib is -1; it must not be negative"),
        (["--stream-mib", "some"], "argument --stream-mib: invalid int value: 'some'"),
        (["--stream-mib", "1", "/etc/passwd"], "--stream-mib goes with the demo's own files, not with yours"),
        (["--stream-mib", "1000000000000"], "1,000,000,000,000 MiB of files and 300 MiB of database do not fit"),
        (["--keep"], "unrecognized arguments: --keep"),
    ],
)
async def test_a_wrong_argument_is_one_line_before_anything_starts(
    start_demo: StartDemo, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    demo = await start_demo(*arguments, cwd=tmp_path)
    code, errors = await demo.end()
    assert (code, demo.lines) == (2, [])
    assert errors.startswith("demo: ")
    assert sentence in errors
    assert errors.count("\n") == 1
    assert list(demo.home.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, "Engine 1 stores"), (signal.SIGTERM, "PostgreSQL starts"), (signal.SIGHUP, "Three engines")],
)
async def test_an_interrupted_demo_stops_and_removes_what_it_started(
    start_demo: StartDemo, number: signal.Signals, line: str
) -> None:
    demo = await start_demo("--stream-mib", "64")
    await demo.says(line)
    demo.send(number)
    # A second one must not interrupt the cleaning up.
    demo.send(number)
    code, errors = await demo.end()
    assert code == 128 + number
    assert errors == "demo: interrupted; what was started is stopped, and its folder is removed.\n"
    assert list(demo.home.iterdir()) == []


async def test_no_process_outlives_a_demo_that_was_killed(start_demo: StartDemo) -> None:
    demo = await start_demo("--stream-mib", "64")
    pids = await demo.pids()
    server = await postmaster(demo)
    demo.send(signal.SIGKILL)
    await gone(server, *pids.values())
    await demo.end()


async def test_an_engine_that_is_killed_is_named(start_demo: StartDemo) -> None:
    demo = await start_demo("--stream-mib", "1")
    pids = await demo.pids()
    server = await postmaster(demo)
    os.kill(pids["engine 3"], signal.SIGKILL)
    code, errors = await demo.end()
    assert code == 1
    assert "engine 3 ended in the middle of its work." in errors
    assert "All is well" not in "\n".join(demo.lines)
    assert list(demo.home.iterdir()) == []
    await gone(server, *pids.values())


async def test_a_storage_that_takes_no_more_is_named(start_demo: StartDemo) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    demo = await start_demo("--stream-mib", "24", preexec_fn=limit)
    code, errors = await demo.end()
    assert code == 1
    assert "engine 1 failed: " in errors
    assert "large" in errors
    assert list(demo.home.iterdir()) == []


async def test_a_count_that_somebody_changes_meanwhile_is_noticed(start_demo: StartDemo) -> None:
    demo = await start_demo("--stream-mib", "64")
    await demo.pids()
    # The demo stands still until the trap is set: no engine but the first has anything to do.
    demo.send(signal.SIGSTOP)
    catalog = await asyncpg.connect(user="postgres", database="bdr", host=str(demo.folder / "postgres"))
    try:
        await catalog.execute("""
            CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.ref_count := NEW.ref_count + 1; RETURN NEW; END';
            CREATE TRIGGER spoil BEFORE UPDATE ON bdr.binary_data_reference
            FOR EACH ROW WHEN (NEW.file_name = 'report.pdf') EXECUTE FUNCTION spoil();
        """)
    finally:
        await catalog.close()
    demo.send(signal.SIGCONT)
    code, errors = await demo.end()
    assert code == 1
    # Whoever looks first: the engine that held it, or the judgement of all the counts that were seen.
    said = r"(The counts of report\.pdf were|The count of \S+ \(report\.pdf\) is) .*, not .*\.\n"
    assert re.fullmatch(rf"demo: this is not as it must be:\n{said}", errors)
    assert list(demo.home.iterdir()) == []
