"""Reservations: the rows of uploads to come, some of them made ahead, so that a store need not wait for its row."""

from collections import deque
from dataclasses import dataclass, field

from bdr.catalog import blob
from bdr.catalog.blob import Reservation
from bdr.catalog.publication import reserve_many
from bdr.errors import BinaryStorageError, CatalogUnavailable, OutcomeUnknown
from bdr.keys import new_id, object_path
from bdr.manager import clock
from bdr.manager.engine import Engine
from bdr.manager.grouping import Ask, Groups, fail_all, take_up


@dataclass(frozen=True, slots=True)
class Reserved:
    """A reservation, and since when its deadline runs, at the latest."""

    reservation: Reservation
    since: float = field(default_factory=clock.seconds)

    @property
    def age(self) -> float:
        """Seconds of that deadline that are over."""
        return clock.seconds() - self.since


_Ask = Ask[None, Reserved]


class Reserving:
    """Reservations of one engine, all in its default storage.

    Who comes when there is none left takes some along for those who come later: at least `upload.reserve_ahead`, and as
    many as were asked for at once. One that has used up half of its deadline is handed out no more, but given back; a
    reaper removes what an engine that was killed had left.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lease = engine.settings.upload.lease
        self._ahead = engine.settings.upload.reserve_ahead
        self._ready: deque[Reserved] = deque()
        self._closed = False
        self._groups = Groups(self._commit)

    async def reserve(self) -> Reserved:
        """A `pending` row for an upload; CatalogUnavailable when it is not known whether it is there."""
        if ready := self._fresh():
            return ready
        # Without a key: whoever is cancelled here has stored nothing.
        ask: _Ask = Ask(None, "", "Reserving")
        self._groups.add(ask)
        return await ask.answered()

    async def give_back_old(self) -> None:
        """Delete the rows of those that will not be handed out any more."""
        old = []
        while self._ready and self._is_old(self._ready[0]):
            old.append(self._ready.popleft())
        await self._give_back(old)

    async def close(self) -> None:
        """Delete the rows that nobody needed, and reserve no more ahead."""
        self._closed = True
        await self._groups.close()
        left = list(self._ready)
        self._ready.clear()
        await self._give_back(left)

    def _fresh(self) -> Reserved | None:
        # The newest first: the others may grow old, and are given back together.
        if self._ready and not self._is_old(self._ready[-1]):
            return self._ready.pop()
        return None

    def _is_old(self, reserved: Reserved) -> bool:
        return reserved.age > self._lease.total_seconds() / 2

    async def _commit(self, asks: list[_Ask]) -> None:
        self._serve_ready(asks)
        if not asks:
            return
        try:
            reserved = await self._insert(asks)
        except OutcomeUnknown as error:
            # If a row is there it stands for nothing, and goes when its deadline has passed.
            lost = CatalogUnavailable(
                "The connection to the database was lost before anything was written; nothing was stored."
            )
            lost.__cause__ = error
            fail_all(asks, lost)
        except BinaryStorageError as error:
            fail_all(asks, error)
        else:
            for ask in asks:
                if not ask.is_over:
                    ask.give(reserved.pop())
            self._ready.extend(reserved)

    async def _insert(self, asks: list[_Ask]) -> list[Reserved]:
        """A row for each who still waits, and those that are made ahead; none when nobody does."""
        reserved: list[Reserved] = []

        def places() -> list[Reservation] | None:
            wanted = len(take_up(asks))
            if not wanted:
                return None
            ahead = 0 if self._closed or not self._ahead else max(self._ahead, wanted)
            reserved.extend(Reserved(self._new()) for _ in range(wanted + ahead))
            return [one.reservation for one in reserved]

        await reserve_many(self._engine.database, places, self._lease)
        return reserved

    def _serve_ready(self, asks: list[_Ask]) -> None:
        while asks and (ready := self._fresh()):
            ask = asks.pop()
            if ask.is_over:
                self._ready.append(ready)
            else:
                ask.give(ready)

    def _new(self) -> Reservation:
        blob_id = new_id()
        return Reservation(blob_id, self._engine.default_storage, object_path(blob_id), self._engine.instance_id)

    async def _give_back(self, old: list[Reserved]) -> None:
        if old:
            blob_ids = [one.reservation.blob_id for one in old]
            await self._engine.database.write(lambda own: blob.give_back(own, blob_ids))
