"""The figure that this package's tests come to."""

import pytest

from tests.chaos.test_steps import KILLED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at how many boundaries processes were killed, on however many workers."""
    passed = terminalreporter.stats.get("passed", [])
    counts = [count for report in passed for name, count in report.user_properties if name == KILLED]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} {KILLED}; after each, everything was whole again.")
