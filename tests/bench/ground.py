"""What everything is measured on: one PostgreSQL and one folder of the same disk, a catalog for each measurement."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg

import bdr
from tests.bench.measure import Run
from tests.fixtures.postgres import PostgresServer, wheel_bindir

KIB: Final = 1024
MIB: Final = 1024 * KIB
SMALL: Final = bytes(range(256)) * 16
METADATA: Final = bdr.BinaryDataMetadata(file_name="report.pdf", mime_type="application/pdf")
# Full durability is PostgreSQL's default. No checkpoint by size falls into one side only: each page that is changed for
# the first time after one costs its whole image.
SETTINGS: Final = {
    "shared_buffers": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "synchronous_commit": "on",
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        seconds: of one side of one round.
        files: that are stored beforehand, to be read.
        stream: bytes of one stream.
        expired: references that one pass reaps.
        slow: the same, where each delete takes 20 ms.
        items: of each round of the comparison with others.
        catalogs: numbers of references whose cost is compared with that of the first.
        reaped: references of one pass there.
        sized: references that are stored for the size of the catalog.
        callers: at once, for the curves; `glance` are the seconds of one point of them.
    """

    rounds: int
    seconds: float
    references: int
    files: int
    stream: int
    expired: int
    slow: int
    items: int
    catalogs: tuple[int, ...]
    reaped: int
    sized: int
    callers: tuple[int, ...]
    glance: float


FULL: Final = Sizes(
    rounds=7,
    seconds=3,
    references=10_000,
    files=10_000,
    stream=1024 * MIB,
    expired=50_000,
    slow=4_000,
    items=2_000,
    catalogs=(10_000, 100_000, 1_000_000, 10_000_000),
    reaped=5_000,
    sized=50_000,
    callers=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    glance=1.5,
)
QUICK: Final = Sizes(
    rounds=2,
    seconds=0.4,
    references=10_000,
    files=1_000,
    stream=128 * MIB,
    expired=2_000,
    slow=1_000,
    items=100,
    catalogs=(10_000, 100_000),
    reaped=1_000,
    sized=5_000,
    callers=(1, 64),
    glance=0.2,
)


@dataclass
class Curves:
    """What is drawn: points (callers or references, figure) and percentiles, by what was done and by whom."""

    callers: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    catalogs: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    latencies: dict[str, dict[int, float]] = field(default_factory=dict)

    def note(self, what: str, runs: list[Run]) -> None:
        """Keep the latencies of several rounds."""
        together = Run([one for run in runs for one in run.latencies], 1)
        self.latencies[what] = together.percentiles


@dataclass(frozen=True)
class Catalog:
    """A catalog and its storage, both empty at first."""

    url: str
    folder: Path

    @property
    def storage(self) -> bdr.BinaryStorageConfig:
        return bdr.BinaryStorageConfig(storage_type="fs", root=str(self.folder))

    @asynccontextmanager
    async def connect(self, **settings: Any) -> AsyncIterator[bdr.BinaryDataLifecycleManager]:
        """One engine on it; what is not given is as it is by default."""
        async with bdr.connect(self.url, self.storage, **settings) as binary:
            yield binary

    async def execute(self, *statements: str) -> None:
        """Run SQL, each statement by itself."""
        connection = await asyncpg.connect(self.url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    async def fetchval(self, query: str, *arguments: object) -> Any:
        """One value."""
        connection = await asyncpg.connect(self.url)
        found = await connection.fetchval(query, *arguments)
        await connection.close()
        return found


class Ground:
    """The server and the folder; also how much is to be measured, and the curves that come of it."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes
        self.curves = Curves()
        self.server = PostgresServer(wheel_bindir(), fsync=True, settings=SETTINGS)
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the server running; nothing of it is left afterwards."""
        try:
            await asyncio.to_thread(self.server.start)
            yield
        finally:
            await asyncio.to_thread(self.server.discard)

    @asynccontextmanager
    async def catalog(self) -> AsyncIterator[Catalog]:
        """A new one, migrated; it goes afterwards, and its files go with the folder."""
        name = await self.server.create_database(await self.server.migrated_template())
        try:
            yield Catalog(self.server.url(name), self.new_folder("objects"))
        finally:
            await self.server.drop_database(name)

    def new_folder(self, kind: str) -> Path:
        """An empty folder on the disk of them all."""
        folder = self.folder / f"{kind}-{next(self._numbers)}"
        folder.mkdir()
        return folder
