"""The figure that this package's tests come to."""

import pytest

from tests.chaos.test_steps import KILLED
from tests.figures import figure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say at how many boundaries processes were killed, on however many workers."""
    figure(terminalreporter, exitstatus, "tests/chaos", KILLED, "after each, everything was whole again")
