"""What the demo shows: bars on a terminal, plain lines in a pipe."""

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PROGRAM = """
from scripts.demo_run.screen import Screen
screen = Screen()
screen.say("Look: \\x1b[2J\\udcff [bold]größe[/]", "bold")
with screen.meter(3, 3_000_000) as meter:
    for _ in range(3):
        meter.advance(size=1_000_000)
with screen.meter(1, noun="process") as meter:
    meter.advance()
"""
COMMAND = [sys.executable, "-c", PROGRAM]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "80"}
LINES = [
    "Look: \ufffd[2J\ufffd [bold]größe[/]",
    r"  3 files, 2\.9 MiB in [\d.]+ s \([\d.,]+ [MGT]iB/s\)\.",
    r"  1 process in [\d.]+ s\.",
]
BAR = r"  ━+ 3/3 files  2\.9 MiB/2\.9 MiB  [\d.,]+ [MGT]iB/s  0:00:00 left"


def on_a_terminal() -> str:
    """All that the program writes to a terminal of its own."""
    ours, its = pty.openpty()
    with subprocess.Popen(COMMAND, stdout=its, env=ENVIRONMENT):
        os.close(its)
        written = b""
        # A terminal that nobody writes to any more is an error to read from.
        with suppress(OSError):
            while part := os.read(ours, 4096):
                written += part
    os.close(ours)
    return written.decode()


def test_in_a_pipe_there_are_plain_lines_and_no_bar() -> None:
    shown = subprocess.run(COMMAND, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    first, *others = shown.stdout.splitlines()
    assert (first, shown.stderr) == (LINES[0], "")
    assert [re.fullmatch(pattern, line) is not None for pattern, line in zip(LINES[1:], others, strict=True)] == [
        True
    ] * 2


def test_on_a_terminal_there_is_a_bar_with_rate_and_remaining_time_that_goes_when_it_is_full() -> None:
    shown = on_a_terminal()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(BAR, plain)
    # The line that the bar stood on is erased before the next one is written.
    assert re.search(r"\x1b\[2K[^━]*  3 files, ", shown)
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= 80


def test_nothing_of_a_name_reaches_the_terminal_as_an_order() -> None:
    assert "\x1b[2J" not in on_a_terminal()
