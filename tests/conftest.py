"""Fixtures of every test live in `tests/fixtures`, a module each for the databases, the storages and the engines."""

import signal

import pytest

from tests.figures import all_figures

# A program started in the background ignores these, and so would all that it starts; the tests send them.
for ignorable in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(ignorable) is signal.SIG_IGN:
        signal.signal(ignorable, signal.default_int_handler if ignorable is signal.SIGINT else signal.SIG_DFL)

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.storages",
    "tests.fixtures.proxy",
    "tests.fixtures.engines",
]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say what the packages that count something came to, on however many workers.

    Here, not in their folders: with workers, the process that writes the summary reads no `conftest` but this one.
    """
    all_figures(terminalreporter, exitstatus)
