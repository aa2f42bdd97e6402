"""A soak of some seconds: too short for a verdict, long enough for everything that goes into one."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import bdr
from tests.soak import __main__ as command
from tests.soak.run import ENGINES, REAPERS, Broken, Report, Schedule, Soak
from tests.soak.sampling import Curves
from tests.soak.test_verdict import report
from tests.soak.verdict import FILES, MEASURES
from tests.storage.helpers import PROJECT, until

SHORT = Schedule(seconds=6, every=0.5, pace=6)
CALLS = {
    *("store", "store a stream", "register", "release", "hold", "let go", "let all go", "get", "read a stream"),
    *("list", "explain", "delete", "clean up", "describe", "hold another's", "get another's", "let another's go"),
}


async def test_every_process_and_table_is_measured_and_all_that_was_done_is_counted(
    database_url: str, fs_config: bdr.BinaryStorageConfig, tmp_path: Path
) -> None:
    found = await Soak(database_url, fs_config, SHORT).run()
    assert (found.done.sentences, found.violations) == ([], [])
    assert found.done.calls.keys() == CALLS
    assert {one.measure for one in found.findings} == set(MEASURES)
    processes = {one.of for one in found.findings if one.measure is FILES}
    assert len(processes) == ENGINES + REAPERS
    assert all(len(values) == len(found.curves.times) > 5 for values in found.curves.values.values())
    found.write(tmp_path / "figures")
    assert (tmp_path / "figures" / "soak.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "figures" / "soak.json").read_text())
    assert figures["calls"] == found.done.calls
    assert len(figures["findings"]) == len(figures["curves"]) == len(found.findings)


async def test_a_process_that_ends_by_itself_ends_the_soak(
    database_url: str, fs_config: bdr.BinaryStorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Curves.sample

    async def kill_one_and_sample(curves: Curves, time: float, processes: dict[str, int], database: object) -> None:
        if len(curves.times) == 2:
            os.kill(processes["engine 2"], signal.SIGKILL)
        await sample(curves, time, processes, database)

    monkeypatch.setattr(Curves, "sample", kill_one_and_sample)
    with pytest.raises(Broken, match="engine 2 ended in the middle of the soak, with -9"):
        await Soak(database_url, fs_config, SHORT).run()


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the embedded server's own user can reach."""
    with tempfile.TemporaryDirectory(prefix="bdr-s-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def found(home: Path, pattern: str) -> list[Path]:
    return list(home.glob(pattern))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_interrupted_soak_leaves_no_process_and_no_folder(home: Path, number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak", "--every=0.1", f"--into={home}/figures"),
        cwd=PROJECT,
        env=os.environ | {"TMPDIR": str(home)},
        stdout=DEVNULL,
        stderr=DEVNULL,
    )

    async def works() -> bool:
        return bool(found(home, "bdr-soak-*/objects/*/*"))

    await until(works, 60)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) > ENGINES + REAPERS
    process.send_signal(number)
    assert await process.wait() == 130
    assert psutil.wait_procs(below, timeout=60)[1] == []
    assert found(home, "*") == []


@pytest.mark.parametrize(("rising", "code"), [(False, 0), (True, 1)])
def test_the_command_fails_when_something_grew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rising: bool,
    code: int,
) -> None:
    async def made(_: Schedule, __: Path) -> Report:
        return report(rising=rising)

    monkeypatch.setattr(command, "soak", made)
    assert command.main(["--minutes", "30", "--into", str(tmp_path)]) == code
    assert ("not flat: file descriptors of engine 1 rose by" in capsys.readouterr().out) == rising
    assert (tmp_path / "soak.json").exists()
