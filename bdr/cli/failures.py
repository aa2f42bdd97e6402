"""From an error to a sentence on standard error and an exit code."""

import sys
from typing import Final

from cyclopts import CycloptsError

from bdr.cli.text import shown
from bdr.errors import BinaryStorageError, FileNotFound, InvalidArgument, Lost, OutcomeUnknown

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


def exit_code(error: Exception) -> int:
    """The exit code that tells this error to scripts."""
    if isinstance(error, FileNotFound) and not isinstance(error, Lost):
        return NO_SUCH_REFERENCE
    if isinstance(error, UsageError | CycloptsError | InvalidArgument):
        return WRONG_USAGE
    return FAILED
