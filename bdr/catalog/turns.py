"""Who gets a connection next: what was begun goes before what has not, and then whoever has waited longest."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

_ahead: ContextVar[bool] = ContextVar("_ahead", default=False)

Waiting = OrderedDict[asyncio.Future[None], None]


@contextmanager
def ahead() -> Iterator[None]:
    """What is done inside is not kept waiting by callers who have only just come.

    For what ends something that was begun, or keeps the engine alive: behind ten thousand callers a heartbeat would
    come too late, and so would the end of a store, whose caller then has waited for nothing.
    """
    token = _ahead.set(True)
    try:
        yield
    finally:
        _ahead.reset(token)


class Turns:
    """As many places as there are connections."""

    def __init__(self, places: int, patience: timedelta) -> None:
        self._free = places
        self._patience = patience.total_seconds()
        self._ahead: Waiting = OrderedDict()
        self._others: Waiting = OrderedDict()

    async def take(self) -> None:
        """Get a place, to be given back; TimeoutError when none became free in time."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(self._ahead if _ahead.get() else self._others)

    def give(self) -> None:
        """Pass a place on."""
        for queue in (self._ahead, self._others):
            while queue:
                place, _ = queue.popitem(last=False)
                # Its task may be cancelled and not have run since.
                if not place.done():
                    place.set_result(None)
                    return
        self._free += 1

    async def _wait(self, queue: Waiting) -> None:
        place = asyncio.get_running_loop().create_future()
        queue[place] = None
        try:
            async with asyncio.timeout(self._patience):
                await place
        except BaseException:
            # Whoever gave up first, and what the other sees: we did, and a place that ends passes us by; or the place
            # was ours already, and goes to the next.
            queue.pop(place, None)
            if place.done() and not place.cancelled():
                self.give()
            raise
