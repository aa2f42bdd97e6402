"""What callers were told, to be compared with what the catalog says when all is over."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from bdr import BinaryDataLifecycleManager, CatalogUnavailable, OutcomeUnknown

Binary = BinaryDataLifecycleManager


class Ledger:
    """What callers were told.

    Attributes:
        counted: the sum of the counts that were acknowledged.
        doubtful: the counts that may have been taken besides.
        stored, maybe: keys of stores that were acknowledged, and of those that may have happened.
        told: how many were told what.

    Any other error than those it knows is raised again.
    """

    def __init__(self) -> None:
        self.counted = 0
        self.doubtful: list[int] = []
        self.stored: set[str] = set()
        self.maybe: set[str] = set()
        self.told: Counter[str] = Counter()

    async def register(self, binary: Binary, key: str) -> None:
        await self._count(binary.register_reference(key), +1, key)

    async def release(self, binary: Binary, key: str) -> None:
        await self._count(binary.release_reference(key), -1, key)

    async def store(self, binary: Binary, size: int) -> None:
        try:
            self.stored.add((await binary.store_data(b"x" * size)).file_key)
            self.told["stored"] += 1
        except OutcomeUnknown as unknown:
            self.maybe.update(unknown.keys)
            self.told["store unknown"] += 1
        except (CatalogUnavailable, asyncio.CancelledError):
            self.told["not stored"] += 1

    async def _count(self, counting: Coroutine[Any, Any, int], change: int, key: str) -> None:
        try:
            await counting
            self.counted += change
            self.told["counted"] += 1
        except OutcomeUnknown as unknown:
            self.doubtful.append(change)
            self.told["count unknown"] += unknown.keys == (key,)
        except (CatalogUnavailable, asyncio.CancelledError):
            self.told["not counted"] += 1

    def allows(self, count: int) -> bool:
        """Whether a count can be right: every doubtful one was taken, or it was not."""
        least = sum(one for one in self.doubtful if one < 0)
        most = sum(one for one in self.doubtful if one > 0)
        return least <= count - self.counted <= most

    def allows_keys(self, found: set[str]) -> bool:
        """Whether these can be the references that are there: all acknowledged ones, and some doubtful ones."""
        return self.stored <= found <= self.stored | self.maybe
