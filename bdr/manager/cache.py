"""The cache of whole files: bounded by weight, keeps what saves most for its size, reads a missing entry once."""

import asyncio
import heapq
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from bdr.errors import BinaryStorageError, Corrupt, FileNotFound, InstanceClosed, own_error

V = TypeVar("V")

# What an entry costs beside its bytes; without it, very many tiny files would take far more than the capacity.
OVERHEAD: Final = 768
# What a read costs beside its bytes, in bytes: a storage serves about so many more in the time that it takes to begin.
# With more, small files have it easier against large ones; docs/cache.md shows what was measured.
_REQUEST: Final = 256 * 1024
# More uses than these do not count: however popular something was, it goes soon once nobody asks for it any more.
_MOST_USES: Final = 16
# So many entries that were used again are passed over, to find one to let go of; then it is the next that goes.
_PASSED_OVER: Final = 64


class _Entry(Generic[V]):
    __slots__ = ("rank", "uses", "value", "weight", "worth")

    def __init__(self, value: V, weight: int, uses: int, base: float) -> None:
        self.value = value
        self.weight = weight
        self.worth = (_REQUEST + weight) / weight
        self.uses = uses
        self.rank = base + uses * self.worth


class Kept(Generic[V]):
    """Values by id, as many as fit: those stay that save most reading for each byte they take.

    GreedyDual-Size-Frequency. An entry ranks by what a hit saves for each byte, times its uses, above the rank of the
    last one that went: so who is not used any more is overtaken, however much it was used before. A newcomer that
    ranks lowest goes at once, so one pass over many files pushes out only what is worth as little. The uses of those
    that went last are remembered: else what is used often, but with more than fits in between, would never stay.

    Args:
        capacity: bytes held at most, with what entries cost beside their bytes; with zero nothing is kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[uuid.UUID, _Entry[V]] = {}
        # Each entry once, by the rank that it had when it was last looked at; it may have risen since.
        self._lowest: list[tuple[float, int, uuid.UUID]] = []
        self._went: OrderedDict[uuid.UUID, int] = OrderedDict()
        self._came = 0
        self._base = 0.0
        self.weight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, blob_id: uuid.UUID) -> V | None:
        """The value, if it is kept; that is a use of it."""
        entry = self._entries.get(blob_id)
        if entry is None:
            return None
        if entry.uses < _MOST_USES:
            entry.uses += 1
        entry.rank = self._base + entry.uses * entry.worth
        return entry.value

    def put(self, blob_id: uuid.UUID, value: V, size: int) -> None:
        """Keep a value of `size` bytes, if it is worth more than what would have to go."""
        weight = size + OVERHEAD
        if weight > self._capacity or blob_id in self._entries:
            return
        uses = min(self._went.pop(blob_id, 0) + 1, _MOST_USES)
        entry = self._entries[blob_id] = _Entry(value, weight, uses, self._base)
        self._came += 1
        heapq.heappush(self._lowest, (entry.rank, self._came, blob_id))
        self.weight += weight
        while self.weight > self._capacity:
            self._let_one_go()

    def _let_one_go(self) -> None:
        for _ in range(_PASSED_OVER):
            rank, came, blob_id = self._lowest[0]
            now = self._entries[blob_id].rank
            if now == rank:
                break
            heapq.heapreplace(self._lowest, (now, came, blob_id))
        self._base, _, blob_id = heapq.heappop(self._lowest)
        gone = self._entries.pop(blob_id)
        self.weight -= gone.weight
        self._went[blob_id] = gone.uses
        while len(self._went) > len(self._entries):
            self._went.popitem(last=False)


class ByteCache:
    """Bytes by blob id. A blob's bytes never change, so an entry is never stale.

    Args:
        capacity: bytes held at most; with zero nothing is kept.
        max_entry: only files smaller than this are kept.
    """

    def __init__(self, capacity: int, max_entry: int) -> None:
        self._is_on = capacity > 0
        self._max_entry = max_entry
        self._kept: Kept[bytes] = Kept(capacity)
        self._loading: dict[uuid.UUID, asyncio.Task[bytes]] = {}

    async def get(self, blob_id: uuid.UUID, size: int, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """The entry, or what `load` gives; of concurrent calls that miss one entry, one loads it for all.

        Each call has an error of its own: what is wrong with the file, its own `load` finds out, for it may know the
        file by another key; what is wrong with the storage is the same for all.
        """
        if size >= self._max_entry or not self._is_on:
            return await load()
        kept = self._kept.get(blob_id)
        if kept is not None:
            return kept
        task = self._loading.get(blob_id)
        leads = task is None
        if task is None:
            task = asyncio.create_task(self._load(blob_id, load))
            self._loading[blob_id] = task
            task.add_done_callback(lambda done: self._loaded(blob_id, done))
        # Not awaited itself: a caller that is cancelled does not take the read away from the others.
        await asyncio.wait({task})
        if task.cancelled():
            raise InstanceClosed("This connection to the catalog was closed while the file was being read.")
        error = None if leads else task.exception()
        if isinstance(error, FileNotFound | Corrupt):
            return await load()
        if isinstance(error, BinaryStorageError):
            raise own_error(error, [], "Reading")
        return task.result()

    def kept(self, blob_id: uuid.UUID) -> bytes | None:
        """The entry, if there is one; that is a use of it."""
        return self._kept.get(blob_id)

    def put(self, blob_id: uuid.UUID, data: bytes) -> None:
        """Keep `data`, if it is small enough and worth more than what would have to go."""
        if len(data) < self._max_entry:
            self._kept.put(blob_id, data, len(data))

    async def close(self) -> None:
        """End the reads that are under way: whoever still waits for one gets InstanceClosed."""
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    @property
    def weight(self) -> int:
        """Bytes held now, and what they cost beside."""
        return self._kept.weight

    async def _load(self, blob_id: uuid.UUID, load: Callable[[], Awaitable[bytes]]) -> bytes:
        data = await load()
        self.put(blob_id, data)
        return data

    def _loaded(self, blob_id: uuid.UUID, task: asyncio.Task[bytes]) -> None:
        self._loading.pop(blob_id, None)
        if not task.cancelled():
            # Marks the error as seen: every caller may have been cancelled meanwhile.
            task.exception()
