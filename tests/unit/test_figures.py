"""The figures that test runs end with are only praised when nothing failed."""

from pathlib import Path

import pytest

from tests.storage.helpers import run_python

CONFTEST = """
from tests.figures import figure

def pytest_terminal_summary(terminalreporter, exitstatus):
    figure(terminalreporter, exitstatus, "ours", "things were done", "all is well")
"""
TESTS = """
import pytest

@pytest.fixture
def broken(request):
    assert request.param != "set-up"
    yield request.param
    assert request.param != "take-down"

@pytest.mark.parametrize("broken", ["", {broken!r}], indirect=True)
def test_counts(broken, record_property):
    record_property("things were done", 3)
    assert {broken!r} != "test"
    if broken == "interrupted":
        raise KeyboardInterrupt
"""
RUN = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir', sys.argv[1], sys.argv[1]]))"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("", "6 things were done; all is well."),
        ("test", "6 things were done; 2 of the tests failed."),
        ("set-up", "3 things were done; 1 of the tests failed."),
        ("interrupted", "3 things were done; the run was cut off."),
        ("take-down", "6 things were done; 1 of the tests failed."),
    ],
)
async def test_a_figure_says_that_all_is_well_only_when_no_test_failed(tmp_path: Path, broken: str, said: str) -> None:
    for folder, what in {"ours": broken, "theirs": "test"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"test_{folder}.py").write_text(TESTS.format(broken=what))
    (tmp_path / "ours" / "conftest.py").write_text(CONFTEST)
    _, output, errors = await run_python(RUN, str(tmp_path))
    assert said in output.splitlines(), output + errors
