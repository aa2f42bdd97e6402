import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import PDF, Command


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path that the server's user can reach; pytest's own are for this user only."""
    with tempfile.TemporaryDirectory(prefix="bdr-c-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_without_any_configuration_every_command_works_on_a_database_of_its_own(home: Path) -> None:
    command = Command(home, {})
    (home / "report.pdf").write_bytes(PDF)
    current = await command("db", "current")
    assert (current.code, current.text) == (0, "none: there is no catalog; `bdr db upgrade` makes it\n")
    put = await command("put", "report.pdf")
    assert (put.code, put.errors) == (0, "")
    got = await command("get", put.cells[0][0])
    assert (got.code, got.output, got.errors) == (0, PDF, "")
    assert (await command("db", "check")).code == 0
    examined = await command("doctor")
    assert (examined.code, {cells[1] for cells in examined.cells}) == (0, {"ok", "note"})
    assert f"embedded, in {home / 'data' / 'bdr' / 'postgres'}" in examined.text
    assert not list((home / "data" / "bdr" / "postgres").glob("*/postmaster.pid"))
