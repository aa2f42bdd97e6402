"""Ways to the catalog for commands that only look at it, or at its schema: no engine joins, no storage is opened."""

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

    from bdr.connect import open_database

    async with AsyncExitStack() as stack:
        yield await open_database(settings, stack)


@asynccontextmanager
async def database_url(settings: "Settings") -> AsyncIterator[str]:
    """The URL of the configured database, or of the embedded one, which runs meanwhile; migrated or not."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from bdr.embedded import EmbeddedPostgres

    async with EmbeddedPostgres(settings.data_dir / "postgres") as url:
        yield url
