"""The same work with what people use instead: a file and its row, stored, read and deleted."""

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

from advanced_alchemy.types import FileObject, StoredObject
from advanced_alchemy.types.file_object import storages
from advanced_alchemy.types.file_object.backends.obstore import ObstoreBackend
from depot.fields.sqlalchemy import UploadedFileField
from depot.manager import DepotManager
from libcloud.storage.drivers.local import LocalStorageDriver
from obstore.store import LocalStore
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy_file import File, FileField
from sqlalchemy_file.storage import StorageManager

import bdr
from tests.bench.ground import METADATA, SMALL, Catalog, Ground
from tests.bench.measure import alternating, run_all
from tests.bench.verdict import Comparison, at_least

CALLERS: Final = 32
WORK: Final = ("store", "get", "delete")
# What is slower because bdr does more, not because it does it worse.
NOTE: Final = (
    "advanced-alchemy, sqlalchemy-file and filedepot write no file through to the disk, keep or compare no checksum, "
    "count no references, record no operations, and leave a file without a row when the process dies between the two"
)
_MOST_ROUNDS: Final = 5


class Peer(Protocol):
    """Something that keeps files with rows in PostgreSQL, by id."""

    async def store(self, data: bytes) -> Any:
        """The file is there when this returns; gives back its id."""

    async def get(self, file: Any) -> bytes:
        """The whole file."""

    async def delete(self, file: Any) -> None:
        """Remove row and file."""


class Bdr:
    """What this is about."""

    def __init__(self, binary: bdr.BinaryDataLifecycleManager) -> None:
        self.get = binary.get_data
        self.delete = binary.delete_data
        self._store = partial(binary.store_data, metadata=METADATA)

    async def store(self, data: bytes) -> str:
        return (await self._store(data)).file_key


class AdvancedAlchemy:
    """FileObject over obstore; it is saved and deleted by hand, as its listener does both after nobody waits for it."""

    def __init__(self, engine: AsyncEngine, folder: Path) -> None:
        backend = ObstoreBackend(folder.name, LocalStore(folder))
        storages.register_backend(backend)

        class Base(DeclarativeBase):
            pass

        class Document(Base):
            __tablename__ = "advanced_alchemy_document"
            id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
            file: Mapped[FileObject] = mapped_column(StoredObject(backend=backend))

        self._engine = engine
        self._document = Document
        self.metadata = Base.metadata
        self._backend = backend

    async def store(self, data: bytes) -> uuid.UUID:
        identifier = uuid.uuid4()
        file = FileObject(backend=self._backend, filename="report.pdf", to_filename=f"{identifier}.pdf")
        await file.save_async(data)
        async with AsyncSession(self._engine) as session:
            session.add(self._document(id=identifier, file=file))
            await session.commit()
        return identifier

    async def get(self, file: uuid.UUID) -> bytes:
        async with AsyncSession(self._engine) as session:
            document = await session.get_one(self._document, file)
        return await document.file.get_content_async()

    async def delete(self, file: uuid.UUID) -> None:
        async with AsyncSession(self._engine) as session:
            document = await session.get_one(self._document, file)
            await session.delete(document)
            await session.commit()
        await document.file.delete_async()


class InThreads:
    """A model with a column that stores files by itself, used by a thread for each caller."""

    def __init__(self, engine: Engine, threads: ThreadPoolExecutor, table: str, column: Any, make: Callable[..., Any]):
        class Base(DeclarativeBase):
            pass

        class Document(Base):
            __tablename__ = table
            id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
            file: Mapped[Any] = mapped_column(column)

        self._engine = engine
        self._threads = threads
        self._document = Document
        self._make = make
        Base.metadata.create_all(engine)

    async def store(self, data: bytes) -> uuid.UUID:
        identifier: uuid.UUID = await self._in_thread(self._store, data)
        return identifier

    async def get(self, file: uuid.UUID) -> bytes:
        data: bytes = await self._in_thread(self._get, file)
        return data

    async def delete(self, file: uuid.UUID) -> None:
        await self._in_thread(self._delete, file)

    async def _in_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _store(self, data: bytes) -> uuid.UUID:
        identifier = uuid.uuid4()
        with Session(self._engine) as session:
            session.add(self._document(id=identifier, file=self._make(data)))
            session.commit()
        return identifier

    def _get(self, file: uuid.UUID) -> bytes:
        with Session(self._engine) as session:
            data: bytes = session.get_one(self._document, file).file.file.read()
        return data

    def _delete(self, file: uuid.UUID) -> None:
        with Session(self._engine) as session:
            session.delete(session.get_one(self._document, file))
            session.commit()


def _sqlalchemy_file(engine: Engine, threads: ThreadPoolExecutor, folder: Path) -> InThreads:
    name = folder.name
    driver: Any = LocalStorageDriver
    container = driver(str(folder)).create_container("files")
    StorageManager.add_storage(name, container)
    column = FileField(upload_storage=name)
    return InThreads(
        engine, threads, "sqlalchemy_file_document", column, lambda data: File(content=data, filename="report.pdf")
    )


def _filedepot(engine: Engine, threads: ThreadPoolExecutor, folder: Path) -> InThreads:
    name = folder.name
    DepotManager.configure(name, {"depot.storage_path": str(folder)})
    return InThreads(engine, threads, "filedepot_document", UploadedFileField(upload_storage=name), lambda data: data)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Libcloud leaves an empty file there for each that it ever stored."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@asynccontextmanager
async def peers_of(ground: Ground, catalog: Catalog) -> AsyncIterator[dict[str, Peer]]:
    """All of them on one database and one disk, with a connection for each caller."""
    address = catalog.url.partition("://")[2]
    async with AsyncExitStack() as stack:
        stack.enter_context(temporary_files_in(ground.new_folder("temporary")))
        binary = await stack.enter_async_context(catalog.connect())
        own = create_async_engine(f"postgresql+asyncpg://{address}", pool_size=CALLERS)
        stack.push_async_callback(own.dispose)
        engine = create_engine(f"postgresql+psycopg://{address}", pool_size=CALLERS)
        stack.callback(engine.dispose)
        threads = stack.enter_context(ThreadPoolExecutor(CALLERS))
        alchemy = AdvancedAlchemy(own, ground.new_folder("advanced-alchemy"))
        async with own.begin() as connection:
            await connection.run_sync(alchemy.metadata.create_all)
        yield {
            "bdr": Bdr(binary),
            "advanced-alchemy": alchemy,
            "sqlalchemy-file": _sqlalchemy_file(engine, threads, ground.new_folder("sqlalchemy-file")),
            "filedepot": _filedepot(engine, threads, ground.new_folder("filedepot")),
        }


async def rates_of(peer: Peer, items: int) -> dict[str, float]:
    """Files per second, by what is done with them."""
    stored: list[Any] = []

    async def store(_: int) -> None:
        stored.append(await peer.store(SMALL))

    async def get(file: Any) -> None:
        if await peer.get(file) != SMALL:
            raise AssertionError(f"{type(peer).__name__} gave other bytes back than it was given")

    runs = {"store": await run_all(range(items), CALLERS, store)}
    runs["get"] = await run_all(stored, CALLERS, get)
    runs["delete"] = await run_all(stored, CALLERS, peer.delete)
    return {what: run.rate for what, run in runs.items()}


async def peers(ground: Ground) -> list[Comparison]:
    """Each kind of work against the one that is best at it, round by round."""
    async with ground.catalog() as catalog, peers_of(ground, catalog) as all_of_them:

        def side(peer: Peer) -> Callable[[], Awaitable[dict[str, float]]]:
            return lambda: rates_of(peer, ground.sizes.items)

        sides = {name: side(peer) for name, peer in all_of_them.items()}
        rates = await alternating(min(_MOST_ROUNDS, ground.sizes.rounds), sides)
    ours = rates.pop("bdr")
    return [_against_the_best(what, ours, rates) for what in WORK]


def _against_the_best(what: str, ours: list[dict[str, float]], theirs: dict[str, list[dict[str, float]]]) -> Comparison:
    rounds = range(len(ours))
    floor = [max(rates[one][what] for rates in theirs.values()) for one in rounds]
    best_one = max(theirs, key=lambda name: sum(rates[what] for rates in theirs[name]))
    work = f"{what} 4 KiB by {CALLERS} callers"
    against = f"the best of three (most often {best_one} {version(best_one)})"
    return Comparison("peers", work, against, "/s", at_least(4), [one[what] for one in ours], floor, NOTE)
