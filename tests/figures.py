"""What the tests of a folder have counted, on however many workers, and whether that may be said of them."""

from typing import Final

import pytest

# Properties of the tests' reports, so that each figure is whole on any number of workers.
KILLED: Final = "boundaries at which a process was killed"
ORDERS: Final = "orders of steps were played"
FAULTS: Final = "faults were injected"
# Of which folder's tests, what they count, and what may be said when all went well.
_FIGURES: Final = (
    ("tests/chaos", KILLED, "after each, everything was whole again"),
    ("tests/interleaving", ORDERS, "every one came to what the rules say"),
    ("tests/faults", FAULTS, "nothing was lost and nothing orphaned"),
)


def all_figures(reporter: pytest.TerminalReporter, ended: int) -> None:
    """Write all of them; `ended` is the exit status of the run."""
    for folder, counted, whole in _FIGURES:
        figure(reporter, ended, folder, counted, whole)


def figure(reporter: pytest.TerminalReporter, ended: int, folder: str, counted: str, whole: str) -> None:
    """Write the sum of a property of the folder's tests, and `whole` only when all of them ran and none failed.

    `ended` is the exit status of the run.
    """
    passed, failed, error = (
        [report for report in reporter.stats.get(outcome, []) if report.nodeid.startswith(f"{folder}/")]
        for outcome in ("passed", "failed", "error")
    )
    # A test's other reports, of setting up and taking down, say the same again.
    calls = [report for report in passed + failed if report.when == "call"]
    counts = [count for report in calls for name, count in report.user_properties if name == counted]
    if counts:
        wrong = len({report.nodeid for report in failed + error})
        cut_off = "the run was cut off" if ended == pytest.ExitCode.INTERRUPTED else whole
        verdict = f"{wrong} of the tests failed" if wrong else cut_off
        reporter.write_line(f"{sum(counts)} {counted}; {verdict}.")
