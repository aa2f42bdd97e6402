"""Counting in groups: register and release of one engine, for callers that bring no transaction and no holder.

A group waits for no lock: what is asked of a reference that somebody else has locked goes in a lane of its own.

Each caller gets the answer that it would have got alone, at its place in the order in which they came.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial

from bdr.catalog.count import Change, Counted, Tally, count_free, count_one, count_under_lock, present
from bdr.catalog.database import Database
from bdr.errors import BinaryStorageError, OutcomeUnknown
from bdr.manager.grouping import Ask, Groups, concerns_all, fail_all, put_down, take_up
from bdr.manager.lanes import Lanes

_MISSING = Counted(None, None, None)

# By how much: 1 or -1.
_Ask = Ask[int, Counted]


class Counting:
    """Counts of one engine; at most `lanes` of its connections wait for locks, and one at least may.

    What is locked waits as long as `patience` for its turn to wait for the lock; then it is Busy.
    """

    def __init__(self, database: Database, lanes: int, patience: timedelta) -> None:
        self._database = database
        self._groups = Groups(self._commit, at_once=2)
        places = asyncio.Semaphore(max(1, lanes))
        self._lanes = Lanes(self._groups, self._wait_and_commit, places, patience)

    async def count(self, key: str, by: int) -> Counted:
        """Add `by`, 1 or -1; as `bdr.catalog.count` does for one key.

        Errors: OutcomeUnknown when the answer was lost, or the caller cancelled while the statement was under way.
        """
        ask: _Ask = Ask(by, key, "Registering" if by > 0 else "Releasing")
        self._lanes.add(ask)
        return await ask.answered()

    async def close(self) -> None:
        """Wait until everything that was asked has its answer."""
        await self._groups.close()

    async def _commit(self, asks: list[_Ask]) -> None:
        by_key: dict[str, list[_Ask]] = {}

        def changes() -> Mapping[str, Change]:
            take_up(asks)
            by_key.update(self._lanes.by_key(asks))
            return {key: _change(own) for key, own in by_key.items()}

        try:
            counted = await count_free(self._database, changes)
        except BinaryStorageError as error:
            if concerns_all(asks, error):
                fail_all(asks, error)
            else:
                # One of them is at fault, and the others shall not suffer for it.
                self._lanes.open(by_key)
            return
        for key, found in counted.items():
            _answer(by_key.pop(key), found)
        if by_key:
            await self._tell_locked(by_key)

    async def _tell_locked(self, left: dict[str, list[_Ask]]) -> None:
        """Nothing was done to these: what is not there is told so, and the others are asked for one by one."""
        for asks in left.values():
            put_down(asks)
        try:
            there = await present(self._database, list(left))
        except BinaryStorageError as error:
            fail_all([ask for asks in left.values() for ask in asks], error)
            return
        for key in left.keys() - there:
            _answer(left.pop(key), None)
        self._lanes.open(left)

    async def _wait_and_commit(self, key: str, asks: list[_Ask]) -> None:
        """All of `asks` are for one reference. Where one asks for too much, those before it go first, without it."""
        later: list[_Ask] = []
        while asks or later:
            if not asks:
                asks, later = later, []
            try:
                found = await self._counted(key, asks)
            except OutcomeUnknown as error:
                # Of those that were sent; the others are asked for anew.
                fail_all(asks, error)
                asks = []
                continue
            except BinaryStorageError as error:
                fail_all(asks + later, error)
                return
            again = _answer(asks, found)
            put_down(again)
            fits = _how_many_fit(again, found)
            asks, later = again[:fits], again[fits:] + later

    async def _counted(self, key: str, asks: list[_Ask]) -> Tally | None:
        found = await count_one(self._database, key, partial(_taken_up, asks))
        if found is None:
            # It is not there, or has too little, which only the slower statement tells; by then it may have enough.
            put_down(asks)
            found = await count_under_lock(self._database, key, partial(_taken_up, asks))
        return found


def _taken_up(asks: list[_Ask]) -> Change | None:
    take_up(asks)
    return _change(asks) if asks else None


def _change(asks: Sequence[_Ask]) -> Change:
    net = low = 0
    for ask in asks:
        net += ask.item
        low = min(low, net)
    return Change(net, low)


def _answer(asks: list[_Ask], found: Tally | None) -> list[_Ask]:
    """Tell each caller the count before and after its own step; gives back those who must be asked for again.

    A release of more than there is, is told so only when all that came before it has been done.
    """
    if found is None:
        for ask in asks:
            ask.give(_MISSING)
        return []
    if found.after is None:
        refused = 0 if found.free else next((n for n, ask in enumerate(asks) if ask.item > 0), len(asks))
        for ask in asks[:refused]:
            ask.give(Counted(found.before, None, None))
        return asks[refused:]
    before = found.before
    for ask in asks:
        after = before + ask.item
        ask.give(Counted(before, after, found.zero_ref_retention))
        before = after
    return []


def _how_many_fit(asks: Sequence[_Ask], found: Tally | None) -> int:
    """How many of `asks`, from the first, take no more than there was."""
    free = (found and found.free) or 0
    for number, ask in enumerate(asks):
        free += ask.item
        if free < 0:
            return number
    return len(asks)
