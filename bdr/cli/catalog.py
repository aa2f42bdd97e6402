"""The way to the catalog for commands that only look at it: no engine joins, no storage is opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bdr.catalog.database import Database
    from bdr.settings import Settings


@asynccontextmanager
async def catalog(settings: "Settings") -> AsyncIterator["Database"]:
    """The migrated catalog's database. Print when it is closed: errors of the output are not the database's."""
    from contextlib import AsyncExitStack

    from bdr.joining import open_database

    async with AsyncExitStack() as stack:
        yield await open_database(settings, stack)
