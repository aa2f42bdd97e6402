"""The demo, run as people run it but without the set-up, in a temporary folder of each test's own."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-I", "-m", "scripts.demo_run")


class RunningDemo:
    """A demo that has been started.

    Attributes:
        home: the folder that all of it happens in; empty when all is over.
        lines: its standard output so far.
    """

    def __init__(self, process: Process, home: Path) -> None:
        self.home = home
        self.lines: list[str] = []
        self._process = process

    async def says(self, beginning: str) -> str:
        """Read on to the first line with this beginning; the rest of that line."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode().rstrip("\n"))
            if self.lines[-1].startswith(beginning):
                return self.lines[-1].removeprefix(beginning)
        raise AssertionError(f"{beginning!r} never came; it said {self.lines}, {await self.end()}")

    async def pids(self) -> dict[str, int]:
        """The processes, by name; waits until they are there."""
        listed = (await self.says("  Process ids: ")).rstrip(".")
        pairs = (one.rstrip(")").split(" (") for one in listed.split(", "))
        return {name: int(pid) for pid, name in pairs}

    def send(self, number: int) -> None:
        """Send the demo itself a signal."""
        self._process.send_signal(number)

    async def end(self) -> tuple[int, str]:
        """Wait for its end; exit code and standard error."""
        output, errors = await self._process.communicate()
        self.lines += output.decode().splitlines()
        assert self._process.returncode is not None
        return self._process.returncode, errors.decode()

    @property
    def folder(self) -> Path:
        """Its temporary folder, while it has one."""
        (folder,) = self.home.iterdir()
        return folder


StartDemo = Callable[..., Any]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path that other users can pass; pytest's own are for this user only."""
    with tempfile.TemporaryDirectory(prefix="bdr-d-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
async def start_demo(home: Path) -> AsyncIterator[StartDemo]:
    """A factory: `await start_demo(*arguments, env=..., cwd=..., preexec_fn=...)`; none is left running at the end."""
    started: list[Process] = []

    async def start(*arguments: str, env: dict[str, str] | None = None, **more: Any) -> RunningDemo:
        environment = os.environ | {"TMPDIR": str(home)} | (env or {})
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment, **more
        )
        started.append(process)
        return RunningDemo(process, home)

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            # It may have been stopped, and cleans up after itself.
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await process.communicate()


def is_any_alive(pids: Sequence[int]) -> bool:
    """Whether one of these processes is there; one that only waits for somebody to ask how it ended is not."""
    command = ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))]
    states = subprocess.run(command, check=False, capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in states)
