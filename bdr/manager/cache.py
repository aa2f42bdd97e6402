"""The cache of whole files: bounded by weight, keeps what is used often, reads a missing entry once."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from moka_py import Moka


class ByteCache:
    """Bytes by blob id. A blob's bytes never change, so an entry is never stale.

    Args:
        capacity: bytes held at most.
        max_entry: larger files than this are not kept.
    """

    def __init__(self, capacity: int, max_entry: int) -> None:
        self._max_entry = max_entry
        # TinyLFU admits a newcomer only if it is asked for more often than what it would push out.
        self._entries: Moka[uuid.UUID, bytes] = Moka(max(capacity, 1), weigher=lambda _, data: max(len(data), 1))
        self._loading: dict[uuid.UUID, asyncio.Task[bytes]] = {}

    async def get(self, blob_id: uuid.UUID, size: int, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """The entry, or what `load` gives; of concurrent calls that miss one entry, one loads it for all."""
        kept = self._entries.get(blob_id)
        if kept is not None:
            return kept
        if size >= self._max_entry:
            return await load()
        task = self._loading.get(blob_id)
        if task is None:
            task = asyncio.create_task(self._load(blob_id, load))
            self._loading[blob_id] = task
            task.add_done_callback(lambda done: self._loaded(blob_id, done))
        # A caller that is cancelled does not take the read away from the others.
        return await asyncio.shield(task)

    def put(self, blob_id: uuid.UUID, data: bytes) -> None:
        """Keep `data`, if it is small enough and the admission policy agrees."""
        if len(data) < self._max_entry:
            self._entries.set(blob_id, data)

    @property
    def weight(self) -> int:
        """Bytes held now."""
        self._entries.run_pending_tasks()
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
