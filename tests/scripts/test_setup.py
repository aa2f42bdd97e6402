"""`scripts/setup` where it cannot or need not do anything; that it can is shown by every CI run in a fresh clone."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "cksum", "dirname")
NO_PYTHON = "bdr needs Python 3.11 or newer with the venv module, and found none."


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and what it reads, beside a folder with the only programs on its path: no Python."""
    project = tmp_path / "a project"
    (project / "scripts").mkdir(parents=True)
    for name in ("scripts/setup", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    (project / "requirements.lock").touch()
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin" / tool).symlink_to(found)
    return project


def environment_of(project: Path, **settings: str) -> dict[str, str]:
    return {"PATH": str(project.parent / "bin"), "PIP_NO_INDEX": "1"} | settings


def run(project: Path, **settings: str) -> tuple[int, str]:
    """Exit code and standard error; nothing is ever on standard output."""
    command, environment = [project / "scripts" / "setup"], environment_of(project, **settings)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd="/")
    assert done.stdout == ""
    return done.returncode, done.stderr


def finish(project: Path, place: Path | None = None) -> None:
    """Write down that the environment was made in this place from what lies there now."""
    parts = [project / "requirements.lock", project / "pyproject.toml", project / "scripts" / "setup"]
    data = b"".join(part.read_bytes() for part in parts)
    checksum = subprocess.run(["cksum"], check=True, capture_output=True, input=data).stdout.decode()
    (project / ".venv" / ".made-from").write_text(f"{place or project} {checksum}")


def make(project: Path) -> None:
    """An environment with a pip: the one that runs the tests, for making a new one takes long."""
    venv.create(project / ".venv", symlinks=True)
    (packages,) = (project / ".venv").glob("lib/python3*/site-packages")
    (packages / "pip.pth").write_text(sysconfig.get_path("purelib"))


def test_without_a_python_it_says_what_is_needed(project: Path) -> None:
    code, errors = run(project)
    assert code == 1
    assert errors.startswith(NO_PYTHON)
    assert not (project / ".venv").exists()


def test_a_python_without_the_venv_module_is_not_taken(project: Path, tmp_path: Path) -> None:
    # As on Debian without python3-venv: venv can be imported there, and fails for want of this.
    (tmp_path / "ensurepip.py").write_text("raise ImportError('not packaged')\n")
    code, errors = run(project, PYTHON=sys.executable, PYTHONPATH=str(tmp_path))
    assert (code, errors.startswith(NO_PYTHON)) == (1, True)


def test_a_python_that_is_named_is_taken(project: Path) -> None:
    command, environment = [project / "scripts" / "setup"], environment_of(project, PYTHON=sys.executable)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as making:
        assert making.stderr is not None
        assert making.stderr.readline().startswith("Making .venv with Python 3.")
        os.killpg(making.pid, signal.SIGKILL)


def test_what_is_done_already_is_left_alone(project: Path) -> None:
    venv.create(project / ".venv", symlinks=True)
    finish(project)
    assert run(project) == (0, "")


def test_an_environment_that_is_out_of_date_is_brought_up_to_date_until_that_succeeds(project: Path) -> None:
    make(project)
    finish(project)
    (project / "requirements.lock").write_text("no-such-package==1 --hash=sha256:00\n")
    for _ in range(2):
        code, errors = run(project)
        assert code != 0
        assert errors.startswith("Bringing .venv up to date ...\n")


def moved(project: Path) -> None:
    make(project)
    finish(project, project.with_name("elsewhere"))


def without_pip(project: Path) -> None:
    venv.create(project / ".venv", symlinks=True)


def half_removed(project: Path) -> None:
    make(project)
    # Its Python is the system's now, which has pip as well: into that nothing may be installed.
    (project / ".venv" / "pyvenv.cfg").unlink()


def without_its_python(project: Path) -> None:
    make(project)
    finish(project)
    for name in (project / ".venv" / "bin").glob("python*"):
        name.unlink()


@pytest.mark.parametrize("spoiled", [moved, without_pip, half_removed, without_its_python])
def test_an_environment_that_cannot_be_repaired_is_made_anew(project: Path, spoiled: Callable[[Path], None]) -> None:
    spoiled(project)
    code, errors = run(project)
    # It asks for a Python to begin again with, and there is none on its path.
    assert (code, errors.startswith(NO_PYTHON)) == (1, True)
