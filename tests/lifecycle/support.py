"""What the tests of the lifecycle share: looking into the catalog, making things due, and waiting for a lock."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from bdr import BinaryDataLifecycleManager, BinaryStorageConfig
from bdr.catalog.base import AnyRow
from bdr.storage import OpenDalStorage
from bdr.storage.deleting import Outcomes
from bdr.storage.protocol import BinaryDataStorage
from tests.fixtures.proxy import TcpProxy
from tests.storage.helpers import until

_WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""
_BUSY = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state IN ('active', 'idle in transaction') AND pid <> pg_backend_pid()
"""


async def rows(binary: BinaryDataLifecycleManager, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    """What the catalog says now."""
    async with binary.engine.database.reading() as connection:
        return [tuple(row) for row in await connection.execute(text(sql), values)]


async def change(binary: BinaryDataLifecycleManager, sql: str, **values: Any) -> None:
    """Do to the catalog what time, or another program, would have done."""
    await binary.engine.database.write(lambda own: own.execute(text(sql), values))


async def set_count(binary: BinaryDataLifecycleManager, key: str, count: int) -> None:
    """Give a reference this count."""
    update = "UPDATE bdr.binary_data_reference SET ref_count = :count WHERE file_key = :key"
    await change(binary, update, count=count, key=key)


async def reference_row(binary: BinaryDataLifecycleManager, key: str) -> AnyRow | None:
    """All columns of a reference, or None."""
    query = text("SELECT * FROM bdr.binary_data_reference WHERE file_key = :key")
    async with binary.engine.database.reading() as connection:
        return (await connection.execute(query, {"key": key})).one_or_none()


async def count_of(binary: BinaryDataLifecycleManager, key: str) -> int | None:
    """The count of a reference as the catalog has it; None when there is no such reference."""
    row = await reference_row(binary, key)
    return None if row is None else row.ref_count


async def keys_of(binary: BinaryDataLifecycleManager) -> set[str]:
    """The keys of all references."""
    return {key for (key,) in await rows(binary, "SELECT file_key FROM bdr.binary_data_reference")}


async def blob_states(binary: BinaryDataLifecycleManager) -> list[str]:
    """The states of all blobs, sorted; without those that this engine has reserved ahead, and not used."""
    ahead = [one.reservation.blob_id for one in binary.uploads.reserving._ready]
    query = "SELECT state FROM bdr.blob WHERE blob_id <> ALL(CAST(:ahead AS uuid[])) ORDER BY state"
    return [state for (state,) in await rows(binary, query, ahead=ahead)]


async def make_due(binary: BinaryDataLifecycleManager, *, but_locked: bool = False) -> None:
    """Let the deadlines of all uploads and deletes pass; `but_locked`, of those that nobody holds locked."""
    due = "SELECT blob_id FROM bdr.blob WHERE next_attempt_at IS NOT NULL FOR UPDATE"
    due += " SKIP LOCKED" if but_locked else ""
    await change(binary, f"UPDATE bdr.blob SET next_attempt_at = now() WHERE blob_id IN ({due})")


async def until_waiting(binary: BinaryDataLifecycleManager, sessions: int = 1) -> None:
    """Wait until so many sessions of this catalog wait for a lock."""

    async def reached() -> bool:
        return bool((await rows(binary, _WAITING))[0][0] >= sessions)

    await until(reached)


async def until_quiet(binary: BinaryDataLifecycleManager) -> None:
    """Wait until nothing is under way in any session of this catalog, abandoned work included."""

    async def reached() -> bool:
        return bool((await rows(binary, _BUSY))[0][0] == 0)

    await until(reached)


async def until_idle(*engines: BinaryDataLifecycleManager) -> None:
    """Wait until these engines have done what they do in the background for callers who are gone."""

    async def reached() -> bool:
        return not any(one.engine.database._tasks for one in engines)

    await until(reached)


@contextmanager
def unmounted(config: BinaryStorageConfig) -> Iterator[None]:
    """The storage's share is not mounted: there is an empty folder in its place."""
    root = Path(config.root)
    away = root.with_name("unmounted")
    root.rename(away)
    root.mkdir()
    yield
    root.rmdir()
    away.rename(root)


def cut_after(proxy: TcpProxy, statement: bytes) -> None:
    """Lose all connections as soon as the server was sent this; nothing of its answer comes through."""

    def look(chunk: bytes) -> None:
        if statement in chunk:
            proxy.on_client_data(None)
            proxy.cut()

    proxy.on_client_data(look)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """A source of these parts."""
    for part in parts:
        yield part


class HeldSource:
    """A source that gives its first part, then waits to be let go on.

    Attributes:
        begun: set when the upload has its row, and asks for the second part.
        go_on: lets it have that.
    """

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts or (b"x" * 10_000, b"y" * 10_000)
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.parts[0]
        self.begun.set()
        await self.go_on.wait()
        for part in self.parts[1:]:
            yield part


class HeldDelete:
    """Makes the deletes of all storages wait, or those of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, only: BinaryDataStorage | None = None) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        delete_many = OpenDalStorage.delete_many

        async def held(storage: OpenDalStorage, paths: Sequence[str], **options: Any) -> Outcomes:
            if only in (None, storage):
                self.begun.set()
                await self.go_on.wait()
            return await delete_many(storage, paths, **options)

        monkeypatch.setattr(OpenDalStorage, "delete_many", held)
