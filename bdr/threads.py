"""Reading and writing that may never return, without keeping the process from ending."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from bdr.errors import IoError

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """What `work` gives, done in a thread of its own.

    `asyncio.to_thread` would not do: the event loop waits for its threads, and a read from a terminal or a write into
    a pipe that nobody empties never ends. `work` must not use Python's own buffers of the standard streams, whose locks
    an interpreter that exits wants to have.

    Raises:
        IoError: the operating system has no thread to give.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to who waits, whatever it is
            _call(loop, done, done.set_exception, error)
        else:
            _call(loop, done, done.set_result, result)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:
        raise IoError(
            f"no thread could be started: {error} (raise the limit of processes, or lower `concurrency`)"
        ) from error
    return await done


def _call(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], settle: Callable[..., None], outcome: object
) -> None:
    def once() -> None:
        # Who waited may have been cancelled.
        if not done.done():
            settle(outcome)

    # The loop may be closed by now.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(once)
