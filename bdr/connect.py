"""The way in; what it needs is imported only when it is called."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from bdr.errors import ConfigError

if TYPE_CHECKING:
    from bdr.lifecycle import BinaryDataLifecycleManager
    from bdr.settings import BinaryStorageConfig, LifecycleCleanupConfig, Settings


@asynccontextmanager
async def connect(
    database_url: str | None = None,
    storage: "BinaryStorageConfig | None" = None,
    lifecycle: "LifecycleCleanupConfig | None" = None,
    *,
    storages: "Mapping[str, BinaryStorageConfig] | None" = None,
    settings: "Settings | None" = None,
    **more: Any,
) -> "AsyncIterator[BinaryDataLifecycleManager]":
    """Join the catalog as one engine instance: `async with bdr.connect() as binary`.

    Args:
        database_url: the catalog's PostgreSQL, as people write it; an embedded one when no setting names any.
        storage: the only storage, or the default one.
        lifecycle: retention that is stamped on what this engine stores.
        storages: several storages by name.
        settings: all settings at once, as `load_settings` gives them; nothing else may be given then.
        more: any other setting by its name, such as `reaper=ReaperConfig(...)`.

    Raises:
        ConfigError: a setting is wrong, the catalog is not migrated, or a storage is another place than the catalog
            knows by its name.
        CatalogUnavailable: the database cannot be reached.
    """
    given = {"database_url": database_url, "storage": storage, "lifecycle": lifecycle, "storages": storages} | more
    given = {name: value for name, value in given.items() if value is not None}
    if settings is not None and given:
        raise ConfigError(
            f"connect() got settings= and also {', '.join(given)}; put them into the settings, or leave those out."
        )
    from bdr.joining import joined
    from bdr.settings import load_settings

    settings = settings or load_settings(**given)
    async with AsyncExitStack() as stack:
        yield await joined(settings, stack)
