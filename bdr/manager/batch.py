"""Verbs on many keys: chunks of bounded size, a result for each key, and what who is cancelled in between is told.

A result is what the verb for one key would have given or raised, had it been called for each, one after the other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from itertools import islice
from typing import Generic, TypeVar

from bdr.catalog.count import present
from bdr.errors import (
    BinaryStorageError,
    Busy,
    InstanceClosed,
    InvalidArgument,
    OperationError,
    OutcomeUnknown,
    own_error,
)
from bdr.keys import is_file_key
from bdr.manager.engine import Engine
from bdr.manager.retrieval import all_absent
from bdr.results import BatchResult, ItemResult

CHUNK = 1000


class Absent(Enum):
    """The answer for a key that no reference has; why is looked up for all such keys together."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT

T = TypeVar("T")
V = TypeVar("V")
Work = Callable[[list[str]], Awaitable[Sequence[T | BinaryStorageError | Absent]]]
Take = Callable[[Sequence[str], bool], Awaitable[Mapping[str, V]]]


async def in_chunks(engine: Engine, keys: Iterable[str], work: Work[T]) -> BatchResult[T]:
    """What `work` answers for each key, one chunk after the other; it is not asked for what cannot be a key."""
    results: list[ItemResult[T]] = []
    for chunk in _chunks(keys):
        asked = [key for key in chunk if _is_key(key)]
        answers = iter(await work(asked) if asked else ())
        told = [next(answers) if _is_key(key) else _no_key(key) for key in chunk]
        results += await _results(engine, chunk, told)
    return BatchResult(results)


class Batch(Generic[V]):
    """One call that changes many references, each chunk in transactions of its own.

    Args:
        take: changes references, all that are given or, with True, those of them that nobody has locked; what is not
            in its answer is not there, or locked.
    """

    def __init__(self, engine: Engine, what: str, take: Take[V]) -> None:
        self._engine = engine
        self._what = what
        self._take = take
        # Of these something may have been changed.
        self._reached: dict[str, None] = {}

    async def answers(self, keys: Sequence[str]) -> dict[str, V | BinaryStorageError]:
        """The answer for each key, or an error that may be that of others, too; none for what is not there.

        Who locks first: what nobody else has locked is done and committed before anything is waited for, so a long
        transaction on one reference delays, and fails, none of the others, nor keeps them locked meanwhile. What is
        left waits together, in key order. When one of these locks is not to be had in time, all are given up; those
        that are free by then are done, and those that still are not are Busy.
        """
        ended = await self._attempt(keys, skip_locked=True)
        left = [key for key in keys if key not in ended]
        if not left:
            return ended
        ended |= await self._attempt(left, skip_locked=False)
        busy = [key for key in left if isinstance(ended.get(key), Busy)]
        if busy:
            ended |= await self._attempt(busy, skip_locked=True)
            await self._drop_absent(ended, [key for key in busy if isinstance(ended[key], Busy)])
        return ended

    @contextmanager
    def told_when_cancelled(self) -> Iterator[None]:
        """A plain cancellation would say that nothing was changed: OutcomeUnknown names what may have been."""
        try:
            yield
        except asyncio.CancelledError as cancelled:
            if not self._reached:
                raise
            raise OutcomeUnknown(list(self._reached), self._what) from cancelled
        except OutcomeUnknown as error:
            keys = self._reached | dict.fromkeys(error.keys)
            raise OutcomeUnknown(list(keys), self._what) from error.__cause__

    async def _attempt(self, keys: Sequence[str], *, skip_locked: bool) -> dict[str, V | BinaryStorageError]:
        try:
            found = await self._take(keys, skip_locked)
        except BinaryStorageError as error:
            if isinstance(error, OutcomeUnknown):
                if error.cancelled:
                    raise
                self._reached |= dict.fromkeys(keys)
            if len(keys) == 1 or not _may_concern_one(error):
                return dict.fromkeys(keys, error)
        else:
            self._reached |= dict.fromkeys(found)
            return dict(found)
        # One of them is at fault, and the others shall not suffer for it.
        middle = len(keys) // 2
        first = await self._attempt(keys[:middle], skip_locked=skip_locked)
        return first | await self._attempt(keys[middle:], skip_locked=skip_locked)

    async def _drop_absent(self, ended: dict[str, V | BinaryStorageError], busy: Collection[str]) -> None:
        if not busy:
            return
        # When nobody can tell, they stay Busy: nothing was changed, which is true of both.
        with suppress(BinaryStorageError):
            there = await present(self._engine.database, list(busy))
            for key in busy:
                if key not in there:
                    del ended[key]


def require_many(items: object, *kinds: type, what: str) -> None:
    """InvalidArgument unless `items` is a collection of many; a text is many characters, which nobody means."""
    if isinstance(items, str | bytes | bytearray) or not isinstance(items, kinds):
        raise InvalidArgument(f"Give {what} as a list or another iterable of them, not {type(items).__name__}.")


def _may_concern_one(error: BinaryStorageError) -> bool:
    refused = isinstance(error, OperationError | InvalidArgument)
    return refused and not isinstance(error, Busy | InstanceClosed)


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    require_many(keys, Iterable, what="the file keys")
    left = iter(keys)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _is_key(key: object) -> bool:
    # Checked before it enters a chunk: one NUL byte must not fail its neighbours.
    return isinstance(key, str) and is_file_key(key)


def _no_key(key: object) -> BinaryStorageError | Absent:
    return ABSENT if isinstance(key, str) else InvalidArgument(f"{key!r} is no file key, which is a text.")


async def _results(
    engine: Engine, keys: Sequence[str], answers: Sequence[T | BinaryStorageError | Absent]
) -> list[ItemResult[T]]:
    absent = [key for key, answer in zip(keys, answers, strict=True) if isinstance(answer, Absent)]
    errors = iter(await _absences(engine, absent) if absent else ())
    results: list[ItemResult[T]] = []
    for key, answer in zip(keys, answers, strict=True):
        told = next(errors) if isinstance(answer, Absent) else answer
        if isinstance(told, BinaryStorageError):
            results.append(ItemResult(key, error=told))
        else:
            results.append(ItemResult(key, told))
    return results


async def _absences(engine: Engine, keys: Sequence[str]) -> Sequence[BinaryStorageError]:
    try:
        return await all_absent(engine, keys)
    except BinaryStorageError as error:
        return [own_error(error, [key], "Looking up") for key in keys]
