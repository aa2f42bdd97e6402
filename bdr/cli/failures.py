"""From an error to a sentence on standard error and an exit code."""

import asyncio
import sys
from collections.abc import Awaitable
from typing import Final, TypeVar

from cyclopts import CycloptsError

from bdr.cli.text import shown
from bdr.errors import BinaryStorageError, FileNotFound, InvalidArgument, Lost, OutcomeUnknown

T = TypeVar("T")

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
NO_SUCH_REFERENCE: Final = 3


class UsageError(Exception):
    """The command was called wrongly; nothing was done."""


def say(text: str) -> None:
    """Tell on standard error, each line under bdr's name."""
    for line in text.splitlines():
        print(f"bdr: {shown(line)}", file=sys.stderr, flush=True)


def tell(error: BinaryStorageError | UsageError | CycloptsError, about: str = "") -> int:
    """Say what went wrong, `about` what, and what to do where more can be said; gives back the exit code."""
    text = str(error)
    say(text if about in text else f"{about}: {text}")
    if isinstance(error, OutcomeUnknown):
        for key in error.keys:
            say(f"`bdr stat {key}` shows what became of it.")
    if isinstance(error, CycloptsError):
        say(f"`{' '.join(('bdr', *(error.command_chain or ())))} --help` shows what it takes.")
    return exit_code(error)


async def attempted(work: Awaitable[T]) -> T | BinaryStorageError:
    """What one of several things to do gives, or the error that it ends with and that the others need not mind."""
    try:
        return await work
    except BinaryStorageError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # It is how the interruption ended, so none of the others follows.
            raise
        return error


def error_fields(error: BinaryStorageError) -> dict[str, str]:
    """What is printed of an error where JSON was asked for."""
    return {"error": str(error), "type": type(error).__name__}


def exit_code(error: Exception) -> int:
    """The exit code that tells this error to scripts."""
    if isinstance(error, FileNotFound) and not isinstance(error, Lost):
        return NO_SUCH_REFERENCE
    if isinstance(error, UsageError | CycloptsError | InvalidArgument):
        return WRONG_USAGE
    return FAILED
