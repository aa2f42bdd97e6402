"""Register and release many: each chunk in one statement, each key with the count of its place in the order."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.count import Counted
from bdr.catalog.database import translated
from bdr.errors import BinaryStorageError, own_error
from bdr.manager.batch import ABSENT, Absent, Batch, in_chunks
from bdr.manager.deletion import cleanup_released
from bdr.manager.engine import Engine
from bdr.manager.holding import Use, not_held
from bdr.results import BatchResult

Answers = Sequence[int | BinaryStorageError | Absent]


async def count_many(engine: Engine, keys: Iterable[str], use: Use) -> BatchResult[int]:
    """Count a use of each key as often as it comes; each chunk commits by itself, and is cleaned up after."""
    asked: list[str] = []

    async def take(some: Sequence[str], skip_locked: bool) -> Mapping[str, Counted]:
        wanted = set(some)
        counted = await engine.database.write(
            lambda own: use.take(own, [key for key in asked if key in wanted], skip_locked=skip_locked),
            keys=some,
            what=use.what,
        )
        # fail point: count.batched
        return {key: one for key, one in counted.items() if one.before is not None}

    async def work(chunk: list[str]) -> Answers:
        asked[:] = chunk
        ended = await batch.answers(list(dict.fromkeys(chunk)))
        counted = {key: one for key, one in ended.items() if isinstance(one, Counted)}
        gone = await cleanup_released(engine, counted) if use.by < 0 else ()
        return _answers(chunk, ended, use, gone)

    batch = Batch(engine, use.what, take)
    with batch.told_when_cancelled():
        return await in_chunks(engine, keys, work)


async def count_many_in(connection: AsyncConnection, engine: Engine, keys: Iterable[str], use: Use) -> BatchResult[int]:
    """As `count_many`, in a caller's transaction; an error of the database ends that, and is raised."""

    async def work(chunk: list[str]) -> Answers:
        with translated():
            return _answers(chunk, await use.take(connection, chunk), use)

    return await in_chunks(engine, keys, work)


def _answers(
    chunk: Sequence[str], ended: Mapping[str, Counted | BinaryStorageError], use: Use, gone: Collection[str] = ()
) -> Answers:
    """What each is told at its place; `gone` are those that the last release of them has ended."""
    places: Counter[str] = Counter()
    answers: list[int | BinaryStorageError | Absent] = []
    for key in chunk:
        places[key] += 1
        answers.append(_answer(key, ended.get(key), places[key], use, is_gone=key in gone))
    return answers


def _answer(
    key: str, ended: Counted | BinaryStorageError | None, place: int, use: Use, *, is_gone: bool
) -> int | BinaryStorageError | Absent:
    if isinstance(ended, BinaryStorageError):
        return own_error(ended, [key], use.what)
    if ended is None or ended.before is None:
        return ABSENT
    left = ended.before if ended.after is None else ended.after
    if place <= abs(left - ended.before):
        return ended.before + place * use.by
    if use.by > 0:
        # By name: who holds it already is not counted again.
        return left
    return ABSENT if is_gone else not_held(key, use.holder, Counted(left, None, None))
