"""Waiting for the operating system, which need not come back from a mount whose server is silent."""

import asyncio
import errno
from collections.abc import Awaitable
from datetime import timedelta
from typing import TypeVar

from bdr.settings.values import format_duration

T = TypeVar("T")


async def in_time(patience: timedelta, work: Awaitable[T]) -> T:
    """What `work` gives; OSError with ETIMEDOUT, which an unavailable storage is told by, when it takes longer."""
    try:
        async with asyncio.timeout(patience.total_seconds()):
            return await work
    except TimeoutError as error:
        raise OSError(errno.ETIMEDOUT, f"no answer within {format_duration(patience)}") from error
