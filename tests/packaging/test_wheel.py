"""The wheel that people install: what is in it, and that it works where nothing else of this checkout is."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Mapping
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = b"%PDF-1.7 not much of a report"
WHERE = """
import json, sys, bdr
from bdr.catalog import migrate
print(json.dumps([bdr.__file__, str(migrate.location()), sys.path]))
"""
# The wheel is made from the checkout, and once more from the sdist that was made from it.
BUILDS = {"checkout": ["--wheel"], "sdist": []}


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a program that has to succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each kind of build."""
    built = {}
    for name, options in BUILDS.items():
        folder = tmp_path_factory.mktemp(name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *options, ROOT, cwd=folder)
        (built[name],) = folder.glob("*.whl")
    return built


@pytest.fixture(params=BUILDS)
def wheel(request: pytest.FixtureRequest, wheels: dict[str, Path]) -> Path:
    return wheels[str(request.param)]


@pytest.fixture(scope="module")
def programs(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs of a fresh environment for each wheel, which has the dependencies but not this checkout."""
    return {name: installed(wheel, tmp_path_factory.mktemp("venv")) for name, wheel in wheels.items()}


def installed(wheel: Path, folder: Path) -> Path:
    """Install a wheel, and nothing from the network, into a new environment; gives back its folder of programs."""
    venv.create(folder, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # A path that is added like this is searched, but its own .pth files are not read: the editable bdr is one of them.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder / "bin"


@pytest.fixture(params=BUILDS)
def bin_folder(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Path:
    return programs[str(request.param)]


@pytest.fixture
def empty() -> Iterator[Path]:
    """An empty folder, with a short path that the user of root's PostgreSQL can pass."""
    with tempfile.TemporaryDirectory(prefix="bdr-w-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def environment(home: Path, **settings: str) -> dict[str, str]:
    """What a new user's shell has, and the settings."""
    return {"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8"} | settings


def files_below(folder: Path, prefix: str) -> dict[str, bytes]:
    """The files of a folder by their place in the wheel, without what Python compiled."""
    return {
        f"{prefix}/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def content_of(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_its_migrations_and_nothing_else(wheel: Path) -> None:
    content = content_of(wheel)
    expected = files_below(ROOT / "bdr", "bdr") | files_below(ROOT / "migrations", "bdr/_migrations")
    expected["bdr/_migrations/alembic.ini"] = (ROOT / "alembic.ini").read_bytes()
    own = {name: data for name, data in content.items() if ".dist-info/" not in name}
    assert own.keys() == expected.keys()
    assert own == expected
    assert {"bdr/py.typed", "bdr/_migrations/env.py"} <= own.keys()


def test_a_wheel_from_the_sdist_is_the_same_as_one_from_the_checkout(wheels: dict[str, Path]) -> None:
    assert wheels["sdist"].name == wheels["checkout"].name
    assert content_of(wheels["sdist"]) == content_of(wheels["checkout"])


def test_the_wheel_says_what_it_is_and_which_program_it_brings(wheel: Path) -> None:
    content = content_of(wheel)
    (metadata,) = (message_from_bytes(data) for name, data in content.items() if name.endswith(".dist-info/METADATA"))
    (programs,) = (data.decode() for name, data in content.items() if name.endswith(".dist-info/entry_points.txt"))
    assert (metadata["Name"], metadata["Requires-Python"], metadata["License-Expression"]) == (
        "bdr", ">=3.11", "Apache-2.0"
    )  # fmt: skip
    assert "bdr = bdr.cli:main" in programs
    assert set(metadata.get_all("Provides-Extra", [])) == {"embedded", "dev", "bench", "peers"}


def test_the_installed_package_is_the_wheels_own(bin_folder: Path, empty: Path) -> None:
    shown = run(bin_folder / "python", "-c", WHERE, cwd=empty, env=environment(empty))
    package, migrations, searched = json.loads(shown)
    assert Path(package).is_relative_to(bin_folder.parent)
    assert Path(migrations) == Path(package).parent / "_migrations"
    assert str(ROOT) not in searched


def test_an_installed_bdr_migrates_a_database_and_keeps_a_file_in_it(
    bin_folder: Path, empty: Path, empty_database_url: str
) -> None:
    settings = environment(empty, BDR_DATABASE_URL=empty_database_url)
    run(bin_folder / "bdr", "db", "upgrade", cwd=empty, env=settings)
    store_and_read_back(bin_folder, empty, settings)


def test_an_installed_bdr_needs_no_configuration_at_all(bin_folder: Path, empty: Path) -> None:
    store_and_read_back(bin_folder, empty, environment(empty))


def store_and_read_back(bin_folder: Path, folder: Path, settings: Mapping[str, str]) -> None:
    """Put a file in an otherwise empty folder, and get it back in another process."""
    (folder / "report.pdf").write_bytes(FILE)
    (stored,) = json.loads(run(bin_folder / "bdr", "put", "report.pdf", "--json", cwd=folder, env=settings))
    assert (stored["file_name"], stored["file_size"], stored["file_kind"]) == ("report.pdf", len(FILE), "pdf")
    run(bin_folder / "bdr", "get", stored["file_key"], "-o", "copy.pdf", cwd=folder, env=settings)
    assert (folder / "copy.pdf").read_bytes() == FILE
