"""The real `bdr`, started as a shell does: in a folder and environment of its own, on pipes or on a terminal."""

import asyncio
import errno
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from bdr.cli.run import outcome

BDR: Final = Path(sys.executable).parent / "bdr"
PATIENCE: Final = 120
PDF: Final = b"%PDF-1.7 a small report\n"
_FOREIGN: Final = ("BDR_", "PG", "DATABASE_URL", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    code: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.output)

    @property
    def cells(self) -> list[list[str]]:
        """The output's lines, taken apart at the tabs."""
        return [line.split("\t") for line in self.text.splitlines()]

    @property
    def fields(self) -> dict[str, str]:
        """Output of names and values."""
        return dict(line.split("\t") for line in self.text.splitlines())


@dataclass
class Daemon:
    """A command that goes on, and what it has logged so far."""

    process: Process
    log: str = ""

    async def logged(self, text: str) -> str:
        """Wait for a line with `text` in it, after those that were waited for already; gives it back."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self.process.stderr.readline()).decode():
                self.log += line
                if text in line:
                    return line
        raise AssertionError(f"{text!r} was not logged before the end ({self.process.returncode}):\n{self.log}")

    async def ended(self) -> int:
        """Wait for its end; gives back the exit code."""
        _, errors = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        self.log += errors.decode()
        assert self.process.returncode is not None
        return self.process.returncode


class Command:
    """Runs `bdr` in `folder`, with `settings` as its environment: `result = await command("ls", "--json")`."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        places = {"HOME": folder, "XDG_DATA_HOME": folder / "data", "XDG_CONFIG_HOME": folder / "config"}
        self.environment = own | {name: str(path) for name, path in places.items()} | {"TERM": "xterm"} | dict(settings)

    async def __call__(self, *arguments: str | Path, stdin: bytes = b"", **settings: str) -> Result:
        """Run a command on pipes; `settings` are environment variables."""
        process = await self.start(*arguments, **settings)
        output, errors = await asyncio.wait_for(process.communicate(stdin), PATIENCE)
        assert process.returncode is not None
        return Result(process.returncode, output, errors.decode())

    async def start(self, *arguments: str | Path, **settings: str) -> Process:
        """Start a command on pipes."""
        return await self._start(arguments, settings, (PIPE, PIPE, PIPE))

    @asynccontextmanager
    async def running(self, *arguments: str, **settings: str) -> AsyncIterator[Daemon]:
        """A command that goes on while inside, and is gone after it."""
        daemon = Daemon(await self.start(*arguments, **settings))
        try:
            yield daemon
        finally:
            if daemon.process.returncode is None:
                daemon.process.kill()
                await daemon.process.communicate()

    async def on_terminal(
        self,
        *arguments: str | Path,
        typed: bytes = b"",
        streams: tuple[str, ...] = ("stdin", "stdout", "stderr"),
        width: int = 160,
        **settings: str,
    ) -> tuple[Result, str]:
        """Run a command with these of its streams on a terminal, the others on pipes; also what the terminal showed."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        stdin, stdout, stderr = (theirs if name in streams else PIPE for name in ("stdin", "stdout", "stderr"))
        try:
            process = await self._start(arguments, settings, (stdin, stdout, stderr))
            os.close(theirs)
            # The kernel keeps it until the command asks.
            os.write(ours, typed)
            shown, (output, errors) = await asyncio.wait_for(
                asyncio.gather(asyncio.to_thread(_all_of, ours), process.communicate()), PATIENCE
            )
        finally:
            os.close(ours)
        assert process.returncode is not None
        return Result(process.returncode, output or b"", (errors or b"").decode()), shown.decode()

    async def _start(
        self, arguments: tuple[str | Path, ...], settings: Mapping[str, str], streams: tuple[int, int, int]
    ) -> Process:
        stdin, stdout, stderr = streams
        environment = self.environment | dict(settings)
        return await asyncio.create_subprocess_exec(
            BDR, *arguments, cwd=self.folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr
        )


class Inside:
    """Runs `bdr` in this process and its event loop: `result = await inside("ls", "--json")`."""

    def __init__(self, captured: pytest.CaptureFixture[bytes]) -> None:
        self._captured = captured

    async def __call__(self, *arguments: str | Path, **settings: str) -> Result:
        """Run a command; `settings` are environment variables."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            code = await outcome([str(argument) for argument in arguments])
        output, errors = self._captured.readouterr()
        return Result(code, output, errors.decode())


def _all_of(terminal: int) -> bytes:
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError as error:
            # Linux says so when the last program has closed its end.
            assert error.errno == errno.EIO  # noqa: PT017 - not about an error of bdr's
            return shown
        if not part:
            return shown
        shown += part
