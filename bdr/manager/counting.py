"""Counting in groups: register and release of one engine, for callers that bring no transaction and no holder.

A group waits for no lock. A reference that somebody else has locked gets a lane of its own, in which what is asked of
it meanwhile is gathered in turn: so one long transaction on one reference delays nobody who asks for another.

Each caller gets the answer that it would have got alone, at its place in the order in which they came.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial

from bdr.catalog.count import Change, Counted, Tally, count_free, count_one, count_under_lock, present
from bdr.catalog.database import Database
from bdr.errors import BinaryStorageError, Busy, OutcomeUnknown
from bdr.manager.grouping import Ask, Groups, breaking_off, concerns_all, fail_all, put_down, take_up

_MISSING = Counted(None, None, None)

_Count = tuple[str, int]
_Ask = Ask[_Count, Counted]


class Counting:
    """Counts of one engine; at most `lanes` of its connections wait for locks, and one at least may.

    What is locked waits as long as `patience` for its turn to wait for the lock; then it is Busy.
    """

    def __init__(self, database: Database, lanes: int, patience: timedelta) -> None:
        self._database = database
        self._patience = patience
        self._groups = Groups(self._commit, at_once=2)
        # Of what is locked: asks that wait for the one that is under way.
        self._lanes: dict[str, list[_Ask]] = {}
        self._places = asyncio.Semaphore(max(1, lanes))

    async def count(self, key: str, by: int) -> Counted:
        """Add `by`, 1 or -1; as `bdr.catalog.count` does for one key.

        Errors: OutcomeUnknown when the answer was lost, or the caller cancelled while the statement was under way.
        """
        ask: _Ask = Ask((key, by), key, "Registering" if by > 0 else "Releasing")
        if key in self._lanes:
            self._lanes[key].append(ask)
        elif self._lanes or self._groups.is_sending:
            self._groups.add(ask)
        else:
            # Who is alone needs no group: the statement for one costs least.
            self._open_lanes({key: [ask]})
        return await ask.answered()

    async def close(self) -> None:
        """Wait until everything that was asked has its answer."""
        await self._groups.close()

    async def _commit(self, asks: list[_Ask]) -> None:
        by_key: dict[str, list[_Ask]] = {}

        def changes() -> Mapping[str, Change]:
            take_up(asks)
            by_key.update(_by_key(asks))
            return {key: _change(own) for key, own in by_key.items()}

        try:
            counted = await count_free(self._database, changes)
        except BinaryStorageError as error:
            if concerns_all(asks, error):
                fail_all(asks, error)
            else:
                # One of them is at fault, and the others shall not suffer for it.
                self._open_lanes(by_key)
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
        self._open_lanes(left)

    def _open_lanes(self, left: Mapping[str, list[_Ask]]) -> None:
        # With those that were gathered meanwhile: who asks later must not come before them.
        later = _by_key(self._groups.take_back(lambda item: item[0] in left))
        for key, asks in left.items():
            put_down(asks)
            self._lanes[key] = asks + later.get(key, [])
            self._groups.do_beside(self._run_lane(key))

    async def _run_lane(self, key: str) -> None:
        """Do what is asked of one reference, waiting for its lock; until nothing is asked of it any more."""
        try:
            while self._lanes[key]:
                # A place for each batch anew: keys that are asked for all the time take turns.
                waiting = len(self._lanes[key])
                placed = await self._take_place()
                if not placed:
                    # Who came while these waited has time left.
                    late, self._lanes[key] = self._lanes[key][:waiting], self._lanes[key][waiting:]
                    fail_all(late, Busy(f"Too many references were locked for {self._patience}; nothing was changed."))
                    continue
                asks, self._lanes[key] = self._lanes[key], []
                try:
                    with breaking_off(asks):
                        await self._wait_and_commit(key, asks)
                finally:
                    self._places.release()
        except BaseException as error:
            for ask in self._lanes[key]:
                ask.break_off(error)
            raise
        finally:
            del self._lanes[key]

    async def _take_place(self) -> bool:
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                return await self._places.acquire()
        except TimeoutError:
            return False

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


def _by_key(asks: Sequence[_Ask]) -> dict[str, list[_Ask]]:
    by_key: defaultdict[str, list[_Ask]] = defaultdict(list)
    for ask in asks:
        by_key[ask.item[0]].append(ask)
    return by_key


def _change(asks: Sequence[_Ask]) -> Change:
    net = low = 0
    for ask in asks:
        net += ask.item[1]
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
        refused = 0 if found.free else next((n for n, ask in enumerate(asks) if ask.item[1] > 0), len(asks))
        for ask in asks[:refused]:
            ask.give(Counted(found.before, None, None))
        return asks[refused:]
    before = found.before
    for ask in asks:
        ask.give(Counted(before, before + ask.item[1], found.zero_ref_retention))
        before += ask.item[1]
    return []


def _how_many_fit(asks: Sequence[_Ask], found: Tally | None) -> int:
    """How many of `asks`, from the first, take no more than there was."""
    free = (found and found.free) or 0
    for number, ask in enumerate(asks):
        free += ask.item[1]
        if free < 0:
            return number
    return len(asks)
