"""What the tests of the manager share: the object behind a key, and answers that are held back."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import event

import bdr
from bdr import BinaryDataLifecycleManager
from bdr.storage import OpenDalStorage
from tests.fixtures.proxy import TcpProxy
from tests.lifecycle.support import rows
from tests.storage.helpers import root_of, until

# Long enough that nothing is written in the background while a test runs.
NEVER = bdr.AccessConfig(flush_interval=timedelta(hours=1))


async def object_file(binary: BinaryDataLifecycleManager, key: str) -> Path:
    """The file of an fs storage in which the bytes of a key lie."""
    details = await binary.get_details(key)
    storage = binary.engine.storage(details.storage_name)
    assert isinstance(storage, OpenDalStorage)
    return root_of(storage) / details.object_path


async def redis_key(binary: BinaryDataLifecycleManager, key: str) -> str:
    """What the server calls the object in which the bytes of a key lie."""
    details = await binary.get_details(key)
    storage = binary.engine.storage(details.storage_name)
    assert isinstance(storage, OpenDalStorage)
    return f"{storage._service.options['root'].strip('/')}/{details.object_path}"


async def records(binary: BinaryDataLifecycleManager, operation_type: str) -> list[tuple[str, int, str | None]]:
    """Status, bytes and error of each record of that type, as they began, once all that wait are written."""
    await binary.operations.flush()
    found = await rows(
        binary,
        "SELECT status, processed_bytes, error FROM bdr.operation WHERE operation_type = :type ORDER BY operation_id",
        type=operation_type,
    )
    return [(status, size, error) for status, size, error in found]


class HeldAnswer:
    """Holds back the answer to an engine's next statement, until its proxy resumes."""

    def __init__(self, proxy: TcpProxy, watcher: BinaryDataLifecycleManager, name: str) -> None:
        self._proxy = proxy
        self._watcher = watcher
        self._application = f"bdr {name}"
        self._before: list[tuple[Any, ...]] = []

    async def prepare(self) -> None:
        """From now on, hold."""
        self._before = await self._idle()
        self._proxy.on_client_data(self._hold)

    async def given(self) -> None:
        """Return when the server has answered, which the engine has not heard yet."""

        async def answered() -> bool:
            return await self._idle() not in ([], self._before)

        await until(answered)

    def _hold(self, _chunk: bytes) -> None:
        # No byte of the answer has passed yet.
        self._proxy.pause()
        self._proxy.on_client_data(None)

    async def _idle(self) -> list[tuple[Any, ...]]:
        began = "SELECT query_start FROM pg_stat_activity WHERE application_name = :name AND state = 'idle'"
        return await rows(self._watcher, began, name=self._application)


def counting(proxy: TcpProxy, command: bytes) -> Callable[[], int]:
    """How often clients have sent `command` through the proxy since."""
    seen = 0

    def look(chunk: bytes) -> None:
        nonlocal seen
        seen += chunk.count(command)

    proxy.on_client_data(look)
    return lambda: seen


def statements_of(binary: BinaryDataLifecycleManager, part: str) -> list[str]:
    """The statements with `part` in them that the engine sends from now on."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if part in statement:
            sent.append(statement)

    def past_sqlalchemy(query: asyncpg.connection.LoggedQuery) -> None:
        if part in query.query:
            sent.append(query.query)

    def lent(connection: Any, _record: object, _proxy: object) -> None:
        connection.driver_connection.add_query_logger(past_sqlalchemy)

    database = binary.engine.database
    for one in [*database._drivers._kept, *database._drivers._lent]:
        one.driver.add_query_logger(past_sqlalchemy)
    event.listen(database._engine.sync_engine, "before_cursor_execute", note)
    event.listen(database._engine.sync_engine, "checkout", lent)
    return sent


async def fetch(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What the database says over a connection of the test's own."""
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def require_nothing_left(url: str) -> None:
    """Every engine has said good-bye, no memory storage is remembered, and no connection is open."""
    assert await fetch(url, "SELECT name FROM bdr.engine_instance WHERE stopped_at IS NULL") == []
    assert await fetch(url, "SELECT name FROM bdr.storage WHERE instance_id IS NOT NULL") == []

    async def alone() -> bool:
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return await fetch(url, others) == []

    # The server notices a closed connection in its own time.
    await until(alone)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; what is tested is what other users meet."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


async def until_gone(binary: BinaryDataLifecycleManager, key: str) -> None:
    """Return when the engine serves the file no more: it may have to hear of the delete first."""

    async def gone() -> bool:
        try:
            await binary.get_data(key)
        except bdr.FileNotFound:
            return True
        return False

    await until(gone)
