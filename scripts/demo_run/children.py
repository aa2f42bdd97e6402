"""Processes that are spoken to in JSON lines."""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from scripts.demo_run import Trouble

# Of a process from which progress comes many times a second; what is silent for so long hangs.
PATIENCE = 300.0
LONGEST_LINE = 1 << 20

Message = dict[str, Any]


class Child:
    """An engine in a process of its own; it ends when its input does, so it never outlives this process for long."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, role: str, name: str, folder: Path) -> Self:
        """Start a process that takes its settings from `bdr.toml` in the folder."""
        log = folder / f"{name}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", "scripts.demo_run.engines", role, name),
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                env=os.environ | {"BDR_CONFIG": str(folder / "bdr.toml")},
                limit=LONGEST_LINE,
                # A Ctrl-C is for the demo, which ends its processes itself.
                start_new_session=True,
            )
        return cls(name, process, log)

    async def answer(self) -> Message:
        """The next line that it says.

        Raises:
            Trouble: it failed, ended, or hangs.
        """
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Trouble(f"{self.name} has said nothing for {PATIENCE:.0f} s.") from None
        if not line:
            raise Trouble(f"{self.name} ended in the middle of its work. {self.log()}")
        message: Message = json.loads(line)
        if "failed" in message:
            raise Trouble(f"{self.name} failed: {message['failed']}")
        return message

    async def work(self, requests: Sequence[Message], seen: Callable[[Message], None]) -> list[Message]:
        """Send all requests and give back their answers, in the order in which they come.

        Args:
            requests: a message each.
            seen: called with every message, also those that are no answer but tell of `bytes` that have passed.
        """
        sending = asyncio.create_task(self._send(requests))
        answers: list[Message] = []
        try:
            while len(answers) < len(requests):
                message = await self.answer()
                seen(message)
                if "bytes" not in message:
                    answers.append(message)
        finally:
            sending.cancel()
            await asyncio.wait({sending})
        return answers

    async def finish(self) -> None:
        """End its input and wait for its end.

        Raises:
            Trouble: it did not end well.
        """
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        self._process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            raise Trouble(f"{self.name} does not end.") from None
        if code != 0:
            raise Trouble(f"{self.name} ended with exit code {code}. {self.log()}")

    async def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def log(self) -> str:
        """What it wrote to standard error, such as warnings."""
        return self._log.read_text(errors="replace").strip()

    async def _send(self, requests: Sequence[Message]) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        # That it is gone shows where its answer is waited for.
        with contextlib.suppress(ConnectionError):
            for request in requests:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                await self._process.stdin.drain()
