"""Counting in groups: register and release of one engine, for callers that bring no transaction and no holder.

A group waits for no lock. A reference that somebody else has locked gets a lane of its own, in which what is asked of
it meanwhile is gathered in turn: so one long transaction on one reference delays nobody who asks for another.

Each caller gets the answer that it would have got alone, at its place in the order in which they came.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

from bdr.catalog.count import Change, Counted, count_by_itself
from bdr.catalog.database import Database
from bdr.errors import BinaryStorageError, Busy
from bdr.manager.grouping import Ask, Groups, breaking_off, concerns_all, fail_all, mark_sent

_MISSING = Counted(None, None, None)

_Count = tuple[str, int]
_Asks = Sequence[Ask[_Count, Counted]]


class Counting:
    """Counts of one engine; at most `lanes` of its connections wait for locks, and one at least may.

    What is locked waits as long as `patience` for its turn to wait for the lock; then it is Busy.
    """

    def __init__(self, database: Database, lanes: int, patience: timedelta) -> None:
        self._database = database
        self._patience = patience
        self._groups = Groups(self._commit)
        # Of what is locked: asks that wait for the one that is under way.
        self._lanes: dict[str, list[Ask[_Count, Counted]]] = {}
        self._places = asyncio.Semaphore(max(1, lanes))
        self._tasks: set[asyncio.Task[None]] = set()

    async def count(self, key: str, by: int) -> Counted:
        """Add `by`, 1 or -1; as `bdr.catalog.count` does for one key.

        Errors: OutcomeUnknown when the answer was lost, or the caller cancelled while the statement was under way.
        """
        ask: Ask[_Count, Counted] = Ask((key, by), key, "Registering" if by > 0 else "Releasing")
        if key in self._lanes:
            self._lanes[key].append(ask)
        else:
            self._groups.add(ask)
        return await ask.answered()

    async def close(self) -> None:
        """Wait until everything that was asked has its answer."""
        await self._groups.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _commit(self, asks: _Asks) -> None:
        mark_sent(asks)
        by_key = _by_key(asks)
        changes = {key: _change(own) for key, own in by_key.items()}
        try:
            found = await count_by_itself(self._database, changes, skip_locked=True)
        except BinaryStorageError as error:
            if len(asks) == 1 or concerns_all(error):
                fail_all(asks, error)
            else:
                # One of them is at fault, and the others shall not suffer for it.
                self._open_lanes(by_key)
            return
        left = {}
        for key, own in by_key.items():
            if key in found and found[key].after is not None:
                _answer(own, found[key])
            else:
                left[key] = own
        self._open_lanes(left)

    def _open_lanes(self, left: Mapping[str, list[Ask[_Count, Counted]]]) -> None:
        for key, asks in left.items():
            mark_sent(asks, sent=False)
            if key in self._lanes:
                self._lanes[key].extend(asks)
            else:
                self._lanes[key] = asks
                task = asyncio.create_task(self._run_lane(key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run_lane(self, key: str) -> None:
        """Do what is asked of one reference, waiting for its lock; until nothing is asked of it any more."""
        try:
            while self._lanes[key]:
                # A place for each batch anew: keys that are asked for all the time take turns.
                placed = await self._take_place()
                asks, self._lanes[key] = self._lanes[key], []
                if not placed:
                    fail_all(asks, Busy(f"Too many references were locked for {self._patience}; nothing was changed."))
                    continue
                try:
                    with breaking_off(asks):
                        await self._wait_and_commit([ask for ask in asks if not ask.is_over])
                finally:
                    self._places.release()
        finally:
            del self._lanes[key]

    async def _take_place(self) -> bool:
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                return await self._places.acquire()
        except TimeoutError:
            return False

    async def _wait_and_commit(self, asks: _Asks) -> None:
        """All of `asks` are for one reference."""
        if not asks:
            return
        mark_sent(asks)
        key = asks[0].item[0]
        try:
            counted = (await count_by_itself(self._database, {key: _change(asks)})).get(key, _MISSING)
        except BinaryStorageError as error:
            fail_all(asks, error)
            return
        if counted.after is not None:
            _answer(asks, counted)
        elif counted.before is None or len(asks) == 1:
            for ask in asks:
                ask.give(counted)
        else:
            # One of them asks for too much: each by itself tells which.
            mark_sent(asks, sent=False)
            for ask in asks:
                if not ask.is_over:
                    await self._wait_and_commit([ask])


def _by_key(asks: _Asks) -> dict[str, list[Ask[_Count, Counted]]]:
    by_key: defaultdict[str, list[Ask[_Count, Counted]]] = defaultdict(list)
    for ask in asks:
        by_key[ask.item[0]].append(ask)
    return by_key


def _change(asks: _Asks) -> Change:
    net = low = 0
    for ask in asks:
        net += ask.item[1]
        low = min(low, net)
    return Change(net, low)


def _answer(asks: _Asks, counted: Counted) -> None:
    """Tell each caller the count as it was before and after its own step."""
    before = counted.before or 0
    for ask in asks:
        after = before + ask.item[1]
        ask.give(Counted(before, after, counted.zero_ref_retention))
        before = after
