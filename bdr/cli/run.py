"""The entry point: runs one command, and turns whatever comes of it into an exit code."""

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from cyclopts import CycloptsError

from bdr.cli.app import command_of
from bdr.cli.failures import DONE, UsageError, tell
from bdr.errors import BinaryStorageError

T = TypeVar("T")

# What a shell reports for a process that a signal has ended.
_BY_SIGNAL = 128


def main() -> None:
    """Run the command that the arguments name, and end the process with its exit code."""
    # A name that the terminal's encoding does not have is shown by its escape.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # text streams, as Python opens them
    sys.exit(_run(sys.argv[1:]))


async def outcome(tokens: Sequence[str]) -> int:
    """Run one command in this event loop; gives back its exit code. Only bugs and interruptions are raised."""
    try:
        result = command_of(tokens)()
        if inspect.isawaitable(result):
            result = await result
    except (BinaryStorageError, UsageError, CycloptsError) as error:
        return tell(error)
    return result if isinstance(result, int) else DONE


def _run(tokens: Sequence[str]) -> int:
    try:
        with asyncio.Runner() as runner:
            return runner.run(_cancelled_by_sigterm(outcome(tokens)))
    except (BrokenPipeError, SystemExit):
        # Nobody reads any more; rich, which prints the help, says so by SystemExit. What is left to be written goes
        # nowhere, or Python would complain about the pipe when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BY_SIGNAL + signal.SIGPIPE
    except KeyboardInterrupt:
        return _BY_SIGNAL + signal.SIGINT
    except asyncio.CancelledError:
        # Ctrl-C is told apart by the runner: this was SIGTERM.
        return _BY_SIGNAL + signal.SIGTERM


async def _cancelled_by_sigterm(work: Awaitable[T]) -> T:
    # An upload that is cancelled sees to what it has written; one that is killed leaves that to the reaper.
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs is in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work
