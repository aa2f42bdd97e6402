"""How any one call to a storage is made: checked, counted, translated, and repeated only where that can help."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import stamina

from bdr.errors import BinaryStorageError, InstanceClosed, StorageUnavailable
from bdr.storage.runtime import RUNTIME
from bdr.storage.translate import FAILURES, Translator

T = TypeVar("T")

# One syncs folders while others delete.
BATCHES = 3
_ATTEMPTS = 3
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 0.5


class Calls:
    """The calls of one storage; at most `concurrency` of them run at once.

    What works through many objects by threads of its own takes one slot for all of them, and one of the `batches`: so
    many such callers have threads at a time, and no more than `threads` each.

    OpenDAL's own layers are not used for this: its retries also repeat writes and errors that stay, and its limit
    counts open files as calls, so that a few readers block each other for ever.
    """

    def __init__(self, translated: Translator, *, concurrency: int, patience: timedelta) -> None:
        self.translated = translated
        self.slots = asyncio.Semaphore(concurrency)
        self.batches = asyncio.Semaphore(BATCHES)
        self.threads = max(1, concurrency // BATCHES)
        self.patience = patience
        self._closed = False
        self._again = stamina.AsyncRetryingCaller(
            attempts=_ATTEMPTS,
            timeout=patience,
            wait_initial=_FIRST_WAIT,
            wait_max=_LONGEST_WAIT,
            wait_jitter=_FIRST_WAIT,
        )

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def check(self) -> None:
        """InstanceClosed after `close`; ConfigError in a forked process."""
        RUNTIME.check()
        if self._closed:
            raise InstanceClosed(f"{self.translated} was closed; open it again")

    async def once(self, action: str, path: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, which is made once: for writes, of which a lost one may still land."""
        self.check()
        # Not `with self.translated(...)`: every read passes here, and a context manager costs more than all the rest.
        async with self.slots:
            try:
                return await call()
            except FAILURES as error:
                raise self.translated.error(action, path, error) from None

    async def retried(self, action: str, path: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, made up to three times while the storage is unavailable."""
        began = time.monotonic()
        try:
            return await self.once(action, path, call)
        except StorageUnavailable as error:
            return await self._once_more(StorageUnavailable, began, error, lambda: self.once(action, path, call))

    async def until(self, passing: type[BinaryStorageError], call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, made again a few times, for less than a second in all, when it raises `passing`."""
        began = time.monotonic()
        try:
            return await call()
        except passing as error:
            return await self._once_more(passing, began, error, call)

    async def _once_more(
        self,
        passing: type[BinaryStorageError],
        began: float,
        error: BinaryStorageError,
        call: Callable[[], Awaitable[T]],
    ) -> T:
        if time.monotonic() - began >= self.patience.total_seconds():
            # It hung, and would again.
            raise error
        return await self._again(passing, _failed_once(error, call))


def _failed_once(error: BinaryStorageError, call: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """The call, whose first try was made already: most succeed, and need nobody who would repeat them."""
    tries = 0

    async def next_try() -> T:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error
        return await call()

    return next_try
