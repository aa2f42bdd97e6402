"""Hints: after a commit that deleted references, other engines are told of which blobs they were.

Nothing is wrong when a hint is lost. What an engine remembers of the catalog it believes for a bounded time only.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from sqlalchemy import Text, func, literal_column, select

from bdr.catalog.base import asked_for
from bdr.catalog.database import Database
from bdr.catalog.prepared import Prepared
from bdr.catalog.turns import ahead
from bdr.errors import BinaryStorageError, Busy

CHANNEL: Final = "bdr_deleted"
# With 33 characters each they stay below the 8,000 bytes that PostgreSQL takes.
_IN_ONE: Final = 240
# Of blobs that wait to be told of; more are not worth the memory.
_LIMIT: Final = 100_000
# How often a connection is waited for again.
_TRIES: Final = 2

_TOLD = asked_for("told", payload=Text())
# A transaction that only notifies writes nothing that it would wait for the disk to have.
NOTIFY: Final = Prepared(select(func.pg_notify(literal_column(f"'{CHANNEL}'"), _TOLD.c.payload)))

log = logging.getLogger(__name__)


def payloads(blob_ids: Iterable[uuid.UUID]) -> Iterator[str]:
    """What to send, each less than 8,000 bytes."""
    left = iter(blob_ids)
    while some := list(islice(left, _IN_ONE)):
        yield ",".join(one.hex for one in some)


def blobs_in(payload: str) -> list[uuid.UUID]:
    """Which blobs a payload names; ValueError when it is none of ours."""
    return [uuid.UUID(one) for one in payload.split(",")]


class Hints:
    """Tells what this engine has deleted: what comes while one statement is under way goes together in the next."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: set[uuid.UUID] = set()
        self._sending: asyncio.Task[None] | None = None

    def tell(self, blob_ids: Iterable[uuid.UUID]) -> None:
        """Have others told that these blobs have lost a reference: to be called once that is committed."""
        if len(self._waiting) < _LIMIT:
            self._waiting.update(blob_ids)
        if self._waiting and self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Wait until all that was to be told is told, or could not be."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._try()
        except BinaryStorageError as error:
            self._waiting.clear()
            log.debug("Other engines were not told what was deleted; they will find out: %s", error)
        finally:
            self._sending = None

    async def _try(self) -> None:
        # Not behind callers who have just come: what others believe meanwhile is out of date.
        with ahead():
            for more in range(_TRIES, -1, -1):
                try:
                    await self._database.fetch(NOTIFY, self._taken)
                except Busy:
                    if not more:
                        raise
                else:
                    return

    def _taken(self) -> dict[str, list[str]]:
        told, self._waiting = self._waiting, set()
        return {"asked_payload": list(payloads(told))}
