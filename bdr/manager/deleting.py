"""Deleting in groups: single deletes of one engine, for callers that bring no transaction of their own.

The references of a group go in one transaction, which waits for no reference; then each caller's object goes with those
of others (`sweeping`). The next group waits a moment for that sweep: its callers may ask again when it has ended, and
two groups that take turns cost nearly twice what one does. Each caller gets the answer that it would have got alone, at
its place in the order in which they came.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from bdr.catalog.blob import ClaimedBlob
from bdr.catalog.count import Counted
from bdr.errors import BinaryStorageError, OutcomeUnknown
from bdr.manager.deletion import CLEANUP, Deletion, Removal, Terms, cleaned_up, remove_references
from bdr.manager.engine import Engine
from bdr.manager.grouping import Ask, Groups, concerns_all, fail_all, take_up
from bdr.manager.lanes import Lanes
from bdr.manager.sweeping import Sweeping


@dataclass(frozen=True, slots=True)
class _Removed:
    """What became of one caller's key, and the object that is left to that caller to sweep."""

    verdict: Deletion
    claimed: ClaimedBlob | None = None


_MISSING: Final = _Removed(Deletion.MISSING)

_Ask = Ask[str, _Removed]


class Deleting:
    """Single deletes of one engine; at most `lanes` of its connections wait for locks, and one at least may.

    What is locked waits as long as `patience` for its turn to wait for the lock; then it is Busy.
    """

    def __init__(self, engine: Engine, lanes: int, patience: timedelta) -> None:
        self.sweeping = Sweeping(engine)
        self._engine = engine
        self._places = asyncio.Semaphore(max(1, lanes))
        self._patience = patience
        self._removing: dict[Terms, _Removing] = {}

    async def delete(self, key: str, terms: Terms) -> Deletion:
        """Delete a reference, then its object if nobody else refers to it; as `delete_references` for one key."""
        if terms not in self._removing:
            self._removing[terms] = _Removing(self._engine, terms, self._places, self._patience, self.sweeping)
        removed = await self._removing[terms].remove(key)
        if removed.claimed is not None:
            try:
                await self.sweeping.sweep(removed.claimed)
            except asyncio.CancelledError as cancelled:
                # A plain cancellation would say that nothing was deleted.
                raise OutcomeUnknown([key], terms.what) from cancelled
        return removed.verdict

    async def cleanup_released(self, key: str, counted: Counted) -> None:
        """Delete what the release of one key has ended at once; the release counts whatever becomes of this."""

        async def delete(_ended: Sequence[str]) -> Mapping[str, Deletion]:
            return {key: await self.delete(key, CLEANUP)}

        await cleaned_up({key: counted}, delete)

    async def close(self) -> None:
        """Wait until everything that was asked has its answer; those who have it then hand over their objects."""
        for removing in self._removing.values():
            await removing.close()
        await self.sweeping.close()


class _Removing:
    """The references of deletes on the same terms, in groups.

    Who locks a reference first, and what each then sees: what somebody else has locked is not in a group's answer, no
    more than what is not there. Either goes in a lane of its own, where it waits for the lock as one who is alone does.
    """

    def __init__(
        self, engine: Engine, terms: Terms, places: asyncio.Semaphore, patience: timedelta, sweeping: Sweeping
    ) -> None:
        self._engine = engine
        self._terms = terms
        self._sweeping = sweeping
        self._groups: Groups[str, _Removed] = Groups(self._commit)
        self._lanes = Lanes(self._groups, self._wait_and_commit, places, patience)

    async def remove(self, key: str) -> _Removed:
        """Errors: OutcomeUnknown when the answer was lost, or the caller cancelled while it was under way."""
        ask: _Ask = Ask(key, key, self._terms.what)
        self._lanes.add_to_group(ask)
        return await ask.answered()

    async def close(self) -> None:
        """Wait until everything that was asked has its answer."""
        await self._groups.close()

    async def _commit(self, asks: list[_Ask]) -> None:
        if len(asks) == 1 and not self._lanes.is_open:
            # It is alone: in its lane it needs no second transaction to find that it is missing.
            self._lanes.open(self._lanes.by_key(asks))
            return
        try:
            removal = await self._remove(asks, skip_locked=True)
        except BinaryStorageError as error:
            if concerns_all(asks, error):
                fail_all(asks, error)
            else:
                # One of them is at fault, and the others shall not suffer for it.
                self._lanes.open(self._lanes.by_key(asks))
            return
        left = [ask for ask in asks if removal.verdicts[ask.item] is Deletion.MISSING]
        _answer([ask for ask in asks if removal.verdicts[ask.item] is not Deletion.MISSING], removal)
        self._lanes.open(self._lanes.by_key(left))
        if removal.claimed:
            # Those who were answered hand over their objects in the next turn.
            await asyncio.sleep(0)
            await self._sweeping.wait_for({one.storage_name for one in removal.claimed})

    async def _wait_and_commit(self, _key: str, asks: list[_Ask]) -> None:
        try:
            removal = await self._remove(asks)
        except BinaryStorageError as error:
            fail_all(asks, error)
        else:
            _answer(asks, removal)

    async def _remove(self, asks: list[_Ask], *, skip_locked: bool = False) -> Removal:
        keys = [ask.item for ask in asks]

        def still_asked() -> list[str]:
            return list(dict.fromkeys(take_up(asks)))

        return await remove_references(
            self._engine, keys, self._terms, skip_locked=skip_locked, still_asked=still_asked
        )


def _answer(asks: Sequence[_Ask], removal: Removal) -> None:
    """Tell each; who asked a second time for what is gone by then finds it missing."""
    # Of references that share a blob the last one takes it along, as one after the other.
    last = {blob_id: key for key, blob_id in removal.blob_ids.items()}
    claims = {last[one.blob_id]: one for one in removal.claimed}
    gone: set[str] = set()
    for ask in asks:
        if ask.item in gone:
            ask.give(_MISSING)
            continue
        verdict = removal.verdicts[ask.item]
        ask.give(_Removed(verdict, claims.get(ask.item)))
        if verdict is Deletion.DELETED:
            gone.add(ask.item)
