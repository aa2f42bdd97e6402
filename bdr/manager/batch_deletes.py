"""Delete many: each chunk in one transaction, then its objects at once."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.database import translated
from bdr.errors import BinaryStorageError, own_error
from bdr.manager.batch import ABSENT, Absent, Batch, in_chunks
from bdr.manager.deletion import Deletion, Terms, delete_references, expire_references, pinned
from bdr.manager.engine import Engine
from bdr.results import BatchResult

Answers = Sequence[BinaryStorageError | Absent | None]


async def delete_many(engine: Engine, keys: Iterable[str], *, force: bool) -> BatchResult[None]:
    """Delete each, whatever its count; each chunk commits by itself."""
    terms = Terms("delete", whatever_the_count=True, force=force)

    async def take(some: Sequence[str], skip_locked: bool) -> Mapping[str, Deletion]:
        verdicts = await delete_references(engine, some, terms, skip_locked=skip_locked)
        return {key: verdict for key, verdict in verdicts.items() if verdict is not Deletion.MISSING}

    async def work(chunk: list[str]) -> Answers:
        ended = await batch.answers(list(dict.fromkeys(chunk)))
        answers = []
        for key in chunk:
            answers.append(_answer(key, ended.get(key)))
            if ended.get(key) is Deletion.DELETED:
                # Whoever comes a second time finds it gone.
                del ended[key]
        return answers

    batch = Batch(engine, "Delete", take)
    with batch.told_when_cancelled():
        return await in_chunks(engine, keys, work)


async def delete_many_in(
    connection: AsyncConnection, engine: Engine, keys: Iterable[str], *, force: bool
) -> BatchResult[None]:
    """As `delete_many`, in a caller's transaction; an error of the database ends that, and is raised."""
    terms = Terms("delete", whatever_the_count=True, force=force)

    async def work(chunk: list[str]) -> Answers:
        with translated():
            verdicts = await expire_references(connection, engine, chunk, terms)
        return [_answer(key, verdicts[key]) for key in chunk]

    return await in_chunks(engine, keys, work)


def _answer(key: str, ended: Deletion | BinaryStorageError | None) -> BinaryStorageError | Absent | None:
    if isinstance(ended, BinaryStorageError):
        return own_error(ended, [key], "Delete")
    if ended is None or ended is Deletion.MISSING:
        return ABSENT
    return pinned(key) if ended is Deletion.PINNED else None
