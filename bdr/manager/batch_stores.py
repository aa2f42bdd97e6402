"""Store many: as many at once as are asked for, and no item is taken before one of them is free for it."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias, cast

from bdr.errors import BinaryStorageError, InvalidArgument, OutcomeUnknown
from bdr.manager.batch import require_many
from bdr.reference import BinaryDataMetadata, BinaryDataReference
from bdr.results import BatchResult, ItemResult

logger = logging.getLogger(__name__)

# As `store_data` takes them.
StoreItem: TypeAlias = tuple[bytes, BinaryDataMetadata | None]
StoreItems: TypeAlias = Iterable[StoreItem] | AsyncIterable[StoreItem]
Store = Callable[[bytes, BinaryDataMetadata | None], Awaitable[BinaryDataReference]]
Discard = Callable[[Sequence[str]], Awaitable[BatchResult[None]]]


async def store_many(
    items: StoreItems, concurrency: int, *, store: Store, discard: Discard
) -> BatchResult[BinaryDataReference]:
    """Store each item with `store`; when the items end with an error, `discard` what was stored before it."""
    require_many(items, Iterable, AsyncIterable, what="pairs of bytes and metadata")
    if concurrency < 1:
        raise InvalidArgument(f"concurrency is {concurrency}; it must be at least 1.")
    stores = _Stores(items, store)
    try:
        await stores.run(concurrency)
        if stores.failure is not None:
            await _discard(stores.keys(), discard)
    except asyncio.CancelledError as cancelled:
        # Who is cancelled must not hear that nothing was stored, and would not know the keys.
        if keys := stores.keys():
            raise OutcomeUnknown(keys, "Storing") from cancelled
        raise
    if stores.failure is not None:
        raise stores.failure
    return BatchResult(stores.results[place] for place in range(len(stores.results)))


class _Stores:
    """The stores of one call.

    Attributes:
        results: by the place of the item.
        failure: what was raised that is no error of one item: by the items themselves, or by a mistake.
    """

    def __init__(self, items: StoreItems, store: Store) -> None:
        self.results: dict[int, ItemResult[BinaryDataReference]] = {}
        self.failure: Exception | None = None
        self._items = _one_by_one(items)
        self._taken = 0
        # An iterator may be asked only by one at a time.
        self._taking = asyncio.Lock()
        self._store = store

    async def run(self, concurrency: int) -> None:
        """Until there are no more items, or one failure."""
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._work())

    def keys(self) -> list[str]:
        """Of what was, or may have been, stored."""
        there = (one for one in self.results.values() if one.error is None or isinstance(one.error, OutcomeUnknown))
        return [one.key for one in there if one.key is not None]

    async def _work(self) -> None:
        # What is under way when another one fails goes on to its end: it is then known what is there.
        try:
            while self.failure is None and (taken := await self._take()) is not None:
                place, item = taken
                self.results[place] = await self._stored(place, item)
        except Exception as error:  # noqa: BLE001 - raised again when all have ended
            self.failure = self.failure or error

    async def _take(self) -> tuple[int, object] | None:
        async with self._taking:
            if self.failure is not None:
                return None
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                return None
            self._taken += 1
            return self._taken - 1, item

    async def _stored(self, place: int, item: object) -> ItemResult[BinaryDataReference]:
        try:
            reference = await self._store(*_checked(item))
        except OutcomeUnknown as error:
            (key,) = error.keys
            result: ItemResult[BinaryDataReference] = ItemResult(key, error=error)
            if error.cancelled:
                self.results[place] = result
                raise asyncio.CancelledError from error
            return result
        except BinaryStorageError as error:
            return ItemResult(None, error=error)
        return ItemResult(reference.file_key, reference)


async def _one_by_one(items: StoreItems) -> AsyncIterator[object]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _checked(item: object) -> StoreItem:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], BinaryDataMetadata | None):  # noqa: PLR2004
        return cast("StoreItem", item)
    raise InvalidArgument(
        f"Each item is a pair of bytes and their BinaryDataMetadata, or None, not {type(item).__name__}."
    )


async def _discard(keys: Sequence[str], discard: Discard) -> None:
    try:
        failed = {one.key: one.error for one in (await discard(keys)).failed}
    except BinaryStorageError as error:
        # The items' own error is what is to be raised.
        failed = dict.fromkeys(keys, error)
    for key, why in failed.items():
        logger.warning("%s was stored before the items failed, and is left to its retention: %s", key, why)
