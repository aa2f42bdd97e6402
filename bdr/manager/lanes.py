"""Lanes: what a group cannot do without waiting for a lock is done beside the groups, each reference by itself.

So one long transaction on one reference delays nobody who asks for another. What is asked of a reference while its lane
is open is gathered there, and goes after what came before.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from bdr.errors import Busy
from bdr.manager.grouping import Ask, Groups, breaking_off, fail_all, put_down
from bdr.manager.pace import Pace

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Lanes(Generic[Item, Answer]):
    """The lanes beside some groups.

    What is locked waits as long as `patience` for its turn to wait for the lock; then it is Busy.

    Args:
        commit: answers every ask that it is given, all with one key, and waits for the lock of that reference.
        places: how many may wait for locks at once.
    """

    def __init__(
        self,
        groups: Groups[Item, Answer],
        commit: Callable[[str, list[Ask[Item, Answer]]], Awaitable[None]],
        places: asyncio.Semaphore,
        patience: timedelta,
    ) -> None:
        self._groups = groups
        self._commit = commit
        self._places = places
        self._patience = patience
        # Asks that wait for the one that is under way.
        self._waiting: dict[str, list[Ask[Item, Answer]]] = {}

    def add(self, ask: Ask[Item, Answer]) -> None:
        """Let it go with the next group, or behind what its reference's lane holds."""
        if not self._waiting and not self._groups.is_sending:
            # Who is alone needs no group: the statements for one cost least.
            self.open({ask.key: [ask]})
        else:
            self.add_to_group(ask)

    def add_to_group(self, ask: Ask[Item, Answer]) -> None:
        """As `add`, but nobody is taken for alone before the loop's turn is over, in which others may ask too."""
        if ask.key in self._waiting:
            self._waiting[ask.key].append(ask)
        else:
            self._groups.add(ask)

    @property
    def is_open(self) -> bool:
        """Whether anything is done beside the groups."""
        return bool(self._waiting)

    def by_key(self, asks: Sequence[Ask[Item, Answer]]) -> dict[str, list[Ask[Item, Answer]]]:
        """The asks for each reference, in their order."""
        by_key: defaultdict[str, list[Ask[Item, Answer]]] = defaultdict(list)
        for ask in asks:
            by_key[ask.key].append(ask)
        return by_key

    def open(self, left: Mapping[str, list[Ask[Item, Answer]]]) -> None:
        """Have these done by themselves. Nothing was done for them: until they are sent, callers may take them back."""
        # With those that were gathered meanwhile: who asks later must not come before them.
        later = self.by_key(self._groups.take_back(left))
        for key, asks in left.items():
            put_down(asks)
            self._waiting[key] = asks + later.get(key, [])
            self._groups.do_beside(self._run(key))

    async def _run(self, key: str) -> None:
        """Do what is asked of one reference, waiting for its lock; until nothing is asked of it any more."""
        pace = Pace()
        try:
            while self._waiting[key]:
                # A place for each batch anew: keys that are asked for all the time take turns.
                waiting = len(self._waiting[key])
                placed = await self._take_place()
                if not placed:
                    # Who came while these waited has time left.
                    fail_all(self._take(key, waiting), _too_late(self._patience))
                    continue
                asks = self._take(key, pace.share(len(self._waiting[key])))
                try:
                    with breaking_off(asks), pace.timing():
                        await self._commit(key, asks)
                finally:
                    self._places.release()
                await pace.gather(len(asks), self._waiting[key])
        except BaseException as error:
            for ask in self._waiting[key]:
                ask.break_off(error)
            raise
        finally:
            del self._waiting[key]

    def _take(self, key: str, number: int) -> list[Ask[Item, Answer]]:
        asks = self._waiting[key]
        self._waiting[key] = asks[number:]
        return asks[:number]

    async def _take_place(self) -> bool:
        if not self._places.locked():
            return await self._places.acquire()
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                return await self._places.acquire()
        except TimeoutError:
            return False


def _too_late(patience: timedelta) -> Busy:
    return Busy(f"Too many references were locked for {patience}; nothing was changed.")
