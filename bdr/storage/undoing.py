"""Failed uploads are undone, whoever has stopped waiting for them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

from bdr.errors import BinaryStorageError
from bdr.storage.translate import Translator
from bdr.storage.writer import StreamWriter

_LOG = logging.getLogger(__name__)


class Undoing:
    """Leaves neither the object of a failed upload nor parts of it; what stays all the same belongs to its catalog row.

    Args:
        delete: deletes the object at a path.
        patience: how long one may take.
    """

    def __init__(
        self, delete: Callable[[str], Awaitable[None]], translated: Translator, *, patience: timedelta
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._delete = delete
        self._translated = translated
        self._patience = patience

    async def undo(self, writer: StreamWriter, path: str) -> None:
        """Undo one; it goes on when the caller is cancelled."""
        task = asyncio.create_task(self._undone(writer, path))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.shield(task)

    async def finished(self) -> None:
        """Return when none is under way."""
        if self.tasks:
            await asyncio.wait(self.tasks)

    async def _undone(self, writer: StreamWriter, path: str) -> None:
        why = f"the storage did not do it in {self._patience}"
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                with suppress(BinaryStorageError):
                    await writer.complete()
                if not writer.path_was_taken:
                    await self._delete(path)
                return
        except BinaryStorageError as error:
            why = str(error)
        except TimeoutError:
            pass
        _LOG.warning("a failed upload to %s in %s is not undone yet: %s", path, self._translated, why)
