"""The command on a fresh catalog and storage; the guarantees are checked when a test is over."""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import bdr
from bdr.catalog.database import Database
from bdr.storage import open_storage
from tests.cli.programs import PDF, Command, Inside
from tests.guarantees import violations


@pytest.fixture
async def command(
    tmp_path: Path, database_url: str, database: Database, fs_config: bdr.BinaryStorageConfig
) -> AsyncIterator[Command]:
    """`await command("ls")` runs `bdr ls` in an empty folder, on the test's own catalog and storage."""
    folder = tmp_path / "here"
    folder.mkdir()
    yield Command(folder, on(database_url, fs_config))
    storage = await open_storage(fs_config, name="main")
    try:
        assert await violations(database, {"main": storage}) == []
    finally:
        await storage.close()


@pytest.fixture
def inside(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    untouched_logging: None,
) -> Inside:
    """`await inside("ls")` runs the same in this process, which costs no start of one."""
    for name in os.environ.keys() - command.environment.keys():
        monkeypatch.delenv(name)
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(command.folder)
    return Inside(capfdbinary)


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """What a command does to the process's logging is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("bdr", "alembic", "stamina", "apscheduler"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def on(database_url: str, storage: bdr.BinaryStorageConfig) -> dict[str, str]:
    """The environment that names this database and this folder."""
    return {
        "BDR_DATABASE_URL": database_url,
        "BDR_STORAGE__STORAGE_TYPE": storage.storage_type,
        "BDR_STORAGE__ROOT": storage.root,
    }


@pytest.fixture
def pdf(command: Command) -> Path:
    """A small file of a known kind, in the command's folder."""
    path = command.folder / "report.pdf"
    path.write_bytes(PDF)
    return path


@pytest.fixture
async def key(inside: Inside, pdf: Path) -> str:
    """The key of that file, stored."""
    return (await inside("put", pdf.name)).cells[0][0]
