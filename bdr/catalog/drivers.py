"""Connections of SQLAlchemy's pool for statements that go past it; what was used is kept at hand for the next one."""

import asyncpg
from sqlalchemy import PoolProxiedConnection, QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine


class Lent:
    """One connection; `driver` is the driver's own."""

    __slots__ = ("_proxied", "driver")

    def __init__(self, proxied: PoolProxiedConnection) -> None:
        self._proxied = proxied
        driver = proxied.driver_connection
        assert driver is not None  # noqa: S101 - it was just lent
        self.driver: asyncpg.Connection = driver

    def give_back(self) -> None:
        """To the pool."""
        self._proxied.close()

    def throw_away(self) -> None:
        """Whatever is still under way on it, nobody else shall meet."""
        self._proxied.invalidate()
        self._proxied.close()


class Drivers:
    """The connections of one pool, of which others take some too, after `make_room`.

    To take one from the pool and give it back costs more than a small statement, so they are not given back until
    somebody else has need of them.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._kept: list[Lent] = []
        self._lent: set[Lent] = set()
        self._closed = False

    def lend_kept(self) -> Lent | None:
        """One that is at hand and open, if there is any."""
        while self._kept:
            lent = self._kept.pop()
            if not lent.driver.is_closed():
                self._lent.add(lent)
                return lent
            lent.throw_away()
        return None

    async def lend_another(self) -> Lent:
        """One of the pool; whoever asks has seen to it that one is not in use."""
        lent = Lent(await self._engine.raw_connection())
        self._lent.add(lent)
        return lent

    def take_back(self, lent: Lent, *, usable: bool) -> None:
        """Keep it for the next use, if it can be used."""
        self._lent.discard(lent)
        if not usable or lent.driver.is_closed():
            lent.throw_away()
        elif self._closed:
            lent.give_back()
        else:
            self._kept.append(lent)

    def make_room(self) -> None:
        """Have the pool lend one that is not in use, although it may be kept here."""
        pool = self._engine.sync_engine.pool
        if self._kept and isinstance(pool, QueuePool) and pool.checkedout() >= pool.size():
            self._kept.pop().give_back()

    def terminate(self) -> None:
        """Cut off those that are in use: whoever waits for an answer gets an error."""
        for lent in self._lent:
            lent.driver.terminate()

    def close(self) -> None:
        """Give back what is kept, and keep nothing more."""
        self._closed = True
        while self._kept:
            self._kept.pop().give_back()
