"""What is loaded by whom, and that the names of the package are there all the same."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bdr

PROJECT = Path(__file__).parents[2]
HEAVY = {"sqlalchemy", "asyncpg", "opendal", "alembic", "pydantic", "apscheduler", "rich.progress"}


def printed(program: str) -> str:
    """What a program prints in a Python that has loaded nothing yet."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)
    return run.stdout


@pytest.mark.parametrize("words", ["--help", "fsck --help", "db upgrade --help", "nosuch"])
def test_help_and_wrong_usage_load_nothing_heavy(words: str) -> None:
    program = f"""
import atexit, sys
from bdr.cli import main
sys.argv = "bdr {words}".split()
atexit.register(lambda: print("loaded:", *sorted({HEAVY} & set(sys.modules))))
main()
"""
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=PROJECT)
    assert run.stdout.splitlines()[-1] == "loaded:"


def test_the_package_loads_what_its_names_need_when_they_are_asked_for() -> None:
    program = f"""
import sys, bdr
loaded = lambda: sorted({HEAVY} & set(sys.modules))
print(loaded(), {{*bdr.__all__}} <= {{*dir(bdr)}})
from bdr import BinaryDataMetadata
print(loaded(), bdr.BinaryDataMetadata is BinaryDataMetadata)
print(bdr.settings.Settings is bdr.Settings, bdr.fsck.check.__name__)
"""
    assert printed(program).splitlines() == ["[] True", "['pydantic'] True", "True check"]


def test_connect_is_the_function_whoever_has_loaded_its_module() -> None:
    assert (
        printed("import bdr.connect, bdr.joining; from bdr import connect; print(bdr.connect is connect)") == "True\n"
    )


def test_all_names_are_there_and_are_those_that_type_checkers_see() -> None:
    block = next(one for one in ast.parse(Path(bdr.__file__).read_text()).body if isinstance(one, ast.If))
    seen = {alias.name: one.module for one in block.body if isinstance(one, ast.ImportFrom) for alias in one.names}
    assert seen == bdr._HOMES
    assert all(getattr(bdr, name) is not None for name in bdr.__all__)


def test_a_name_that_is_not_there_is_an_error_for_python_and_for_type_checkers() -> None:
    with pytest.raises(AttributeError, match="module 'bdr' has no attribute 'nosuch'"):
        _ = bdr.nosuch  # type: ignore[attr-defined]  # that mypy wants this is half of the test
    with pytest.raises(ImportError, match="cannot import name 'nosuch'"):
        from bdr import nosuch  # type: ignore[attr-defined]  # noqa: F401 - as above; it cannot be used
