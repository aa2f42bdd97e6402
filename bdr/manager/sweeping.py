"""Sweeping in groups: the objects of single deletes of one engine go together, those of each storage by themselves.

A sweep reads the storage's marker twice, syncs folders and ends with a statement, whatever the number of its objects:
what is handed over while one is under way goes with the next.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bdr.catalog.blob import ClaimedBlob
from bdr.manager import clock
from bdr.manager.engine import Engine
from bdr.manager.grouping import Ask, Groups, take_up
from bdr.manager.sweep import sweep_or_leave

logger = logging.getLogger(__name__)

# Seconds: most sweeps of a local disk take less.
_MOMENT: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A claim, and since when it waits for the sweep before its own; None when there was none."""

    blob: ClaimedBlob
    since: float | None


_Ask = Ask[_Waiting, None]


class Sweeping:
    """Sweeps of one engine, one at a time for each storage.

    The claim of an object goes on while it waits here. Who is first when half of a lease is over, and what each then
    sees: a group that begins before has the other half for its deletes, and its finish finds the claim. One that began
    later would delete objects whose claims may have run out meanwhile: its finish then changes nothing, and a reaper,
    who has claimed them, does it all again; each sweep after it would be later still. So these are left to the reaper.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._half = engine.settings.reaper.lease.total_seconds() / 2
        # By storage, as is what is under way.
        self._groups: dict[str, Groups[_Waiting, None]] = {}
        self._under_way: dict[str, tuple[Sequence[_Ask], asyncio.Task[None]]] = {}
        self._in_vain: set[str] = set()

    async def sweep(self, blob: ClaimedBlob) -> None:
        """Delete the object and its row; what fails is logged and left to the reaper.

        Who is cancelled leaves it to the reaper, unless its group has begun and others wait for that.
        """
        name = blob.storage_name
        groups = self._groups.setdefault(name, Groups(partial(self._commit, name)))
        ask: _Ask = Ask(_Waiting(blob, clock.seconds() if groups.is_sending else None), "", "Sweeping")
        groups.add(ask)
        try:
            await ask.answered()
        except asyncio.CancelledError:
            self._break_off_unwanted(name)
            raise

    async def wait_for(self, names: Collection[str]) -> None:
        """Wait a moment until nothing is left to sweep in these storages.

        Where that was in vain it is not tried again before a sweep of that storage has taken no longer than a moment:
        one that is slow, or hangs, must not keep others waiting.
        """
        hopeful = [name for name in names if name in self._groups and name not in self._in_vain]
        sending = {task: name for name in hopeful for task in self._groups[name].sending}
        if sending:
            _, late = await asyncio.wait(sending, timeout=_MOMENT)
            self._in_vain.update(sending[task] for task in late)

    async def close(self) -> None:
        """Wait until everything that was handed over was dealt with."""
        for groups in self._groups.values():
            await groups.close()

    async def _commit(self, name: str, asks: list[_Ask]) -> None:
        self._leave_late(asks)
        claimed = [waiting.blob for waiting in take_up(asks)]
        if not claimed:
            return
        began = clock.seconds()
        sweep = asyncio.create_task(sweep_or_leave(self._engine, name, claimed))
        self._under_way[name] = asks, sweep
        try:
            await asyncio.wait({sweep})
        finally:
            del self._under_way[name]
        if clock.seconds() - began <= _MOMENT:
            self._in_vain.discard(name)
        if not sweep.cancelled():
            sweep.result()
        for ask in asks:
            ask.give(None)

    def _leave_late(self, asks: Sequence[_Ask]) -> None:
        now = clock.seconds()
        for ask in asks:
            blob, since = ask.item.blob, ask.item.since
            if since is not None and now - since > self._half and not ask.is_over:
                logger.warning("Object %r is left to the reaper: its turn came too late.", blob.object_path)
                ask.give(None)

    def _break_off_unwanted(self, name: str) -> None:
        """A storage that is slow is not waited for when nobody does any more."""
        asks, sweep = self._under_way.get(name, ((), None))
        if sweep is not None and all(ask.is_over for ask in asks):
            sweep.cancel()
