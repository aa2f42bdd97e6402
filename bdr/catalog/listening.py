"""Hearing hints, on a connection of an engine's own that does nothing else, and knowing whether it still hears.

A connection can be dead for minutes before TCP says so. So it pings: it notifies itself, and hears that behind every
hint that was sent before, for the server delivers in the order of commits. What was heard of a ping therefore proves
that everything told before it was sent has been heard.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import asyncpg

from bdr.catalog.hints import CHANNEL, blobs_in
from bdr.catalog.translate import translated
from bdr.errors import BinaryStorageError, CatalogUnavailable

# From the answer to one ping to the next.
INTERVAL: Final = 2.0
# So long a ping may take; then the connection is given up.
PATIENCE: Final = 3.0
# So long after a ping was sent, what it proved is believed: until the next one must have been answered.
BELIEVED: Final = INTERVAL + PATIENCE
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 5.0

log = logging.getLogger(__name__)


class Hearer(Protocol):
    """Who wants to know; all times are of `time.monotonic`."""

    def drop(self, blob_ids: Sequence[uuid.UUID]) -> None:
        """These blobs have lost a reference."""

    def trust(self, until: float) -> None:
        """All that was told `BELIEVED` seconds before `until` has been heard."""

    def distrust(self) -> None:
        """Anything may have been told meanwhile."""


class Listener:
    """Listens until it is stopped, and connects again when it is cut off.

    Args:
        connect: makes a connection.
        instance_id: of whose pings it is to hear, nobody else does.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[asyncpg.Connection]], instance_id: uuid.UUID, hearer: Hearer
    ) -> None:
        self._connect = connect
        self._hearer = hearer
        self._own_channel = f"bdr_ping_{instance_id.hex}"
        self._pings = 0
        self._sent_at = 0.0
        self._answered = asyncio.Event()
        self._wait = _FIRST_WAIT
        self._is_failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; until a first ping is answered nothing is trusted."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End soon, and have nothing trusted any more; `close` waits for that."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End, and let the connection go."""
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                with translated():
                    await self._listen()
            except BinaryStorageError as error:
                self._failed(error)
            except Exception:
                log.exception("A mistake in listening for hints; trying again")
            # Not all engines at once, when the server is back.
            await asyncio.sleep(self._wait * random.uniform(0.5, 1))  # noqa: S311 - it is no secret
            self._wait = min(self._wait * 2, _LONGEST_WAIT)

    async def _listen(self) -> None:
        connection = await self._connect()
        lost = asyncio.Event()

        def end(_: object) -> None:
            lost.set()
            self._hearer.distrust()

        connection.add_termination_listener(end)
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.add_listener(CHANNEL, self._told)
                await connection.add_listener(self._own_channel, self._echoed)
            while not lost.is_set():
                await self._ping(connection)
                self._works()
                await _wait_for(lost, INTERVAL)
            raise CatalogUnavailable("The connection that listens was lost.")
        finally:
            self._hearer.distrust()
            connection.terminate()

    async def _ping(self, connection: asyncpg.Connection) -> None:
        self._pings += 1
        self._answered.clear()
        async with asyncio.timeout(PATIENCE):
            self._sent_at = time.monotonic()
            await connection.execute("SELECT pg_notify($1, $2)", self._own_channel, str(self._pings))
            await self._answered.wait()

    def _echoed(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        if payload == str(self._pings):
            self._hearer.trust(self._sent_at + BELIEVED)
            self._answered.set()

    def _told(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        try:
            self._hearer.drop(blobs_in(str(payload)))
        except ValueError:
            # Of somebody else's, or of a later version: it may mean anything.
            self._hearer.distrust()

    def _works(self) -> None:
        self._wait = _FIRST_WAIT
        if self._is_failing:
            self._is_failing = False
            log.info("What other engines delete is heard of again")

    def _failed(self, error: BinaryStorageError) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.info("What other engines delete is not heard of, the catalog is asked instead: %s", error)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
