"""The cache of whole files: bounded by weight, keeps what is used often, reads a missing entry once."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from moka_py import Moka

from bdr.errors import InstanceClosed

# What an entry costs beside its bytes; without it, very many tiny files would take far more than the capacity.
_OVERHEAD = 256


class ByteCache:
    """Bytes by blob id. A blob's bytes never change, so an entry is never stale.

    Args:
        capacity: bytes held at most; with zero nothing is kept.
        max_entry: only files smaller than this are kept.
    """

    def __init__(self, capacity: int, max_entry: int) -> None:
        self._max_entry = max_entry
        # TinyLFU admits a newcomer only if it is asked for more often than what it would push out.
        self._entries: Moka[uuid.UUID, bytes] = Moka(max(capacity, 1), weigher=lambda _, data: len(data) + _OVERHEAD)
        self._loading: dict[uuid.UUID, asyncio.Task[bytes]] = {}

    async def get(self, blob_id: uuid.UUID, size: int, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """The entry, or what `load` gives; of concurrent calls that miss one entry, one loads it for all."""
        if size >= self._max_entry:
            return await load()
        kept = self._entries.get(blob_id)
        if kept is not None:
            return kept
        task = self._loading.get(blob_id)
        if task is None:
            task = asyncio.create_task(self._load(blob_id, load))
            self._loading[blob_id] = task
            task.add_done_callback(lambda done: self._loaded(blob_id, done))
        # Not awaited itself: a caller that is cancelled does not take the read away from the others.
        await asyncio.wait({task})
        if task.cancelled():
            raise InstanceClosed("This connection to the catalog was closed while the file was being read.")
        return task.result()

    def put(self, blob_id: uuid.UUID, data: bytes) -> None:
        """Keep `data`, if it is small enough and the admission policy agrees."""
        if len(data) < self._max_entry:
            self._entries.set(blob_id, data)
            # Moka puts its work off, and a burst of entries would hold ten times the capacity meanwhile: the first
            # call decides what has to go, the second lets go of it.
            self._entries.run_pending_tasks()
            self._entries.run_pending_tasks()

    async def close(self) -> None:
        """End the reads that are under way: whoever still waits for one gets InstanceClosed."""
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    @property
    def weight(self) -> int:
        """Bytes held now, and what they cost beside."""
        return self._entries.weighted_size()

    async def _load(self, blob_id: uuid.UUID, load: Callable[[], Awaitable[bytes]]) -> bytes:
        data = await load()
        self.put(blob_id, data)
        return data

    def _loaded(self, blob_id: uuid.UUID, task: asyncio.Task[bytes]) -> None:
        self._loading.pop(blob_id, None)
        if not task.cancelled():
            # Marks the error as seen: every caller may have been cancelled meanwhile.
            task.exception()
