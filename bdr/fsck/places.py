"""Whether a plan is about this catalog, and about the places that its storages are by now."""

import uuid

from bdr.catalog import storage as known_storages
from bdr.catalog.storage import KnownStorage
from bdr.errors import StorageMismatch
from bdr.fsck.findings import Place
from bdr.manager.engine import Engine


def place_of(known: KnownStorage) -> Place:
    """Where the catalog knows a storage."""
    return Place(storage_type=known.storage_type, location=known.root, fingerprint=known.fingerprint)


def require_same_catalog(engine: Engine, catalog_id: uuid.UUID) -> None:
    """StorageMismatch when a plan was made for another catalog."""
    if catalog_id != engine.catalog_id:
        raise StorageMismatch(
            f"The plan is about catalog {catalog_id}, and this one is {engine.catalog_id}: check this one first."
        )


async def require_place(engine: Engine, name: str, place: Place) -> None:
    """StorageMismatch when a storage is not the place that was checked, for the catalog or for this instance."""
    async with engine.database.reading() as connection:
        known = {one.name: one for one in await known_storages.known(connection)}
    if name not in known or place_of(known[name]) != place:
        now = f"knows it at {known[name].root}" if name in known else "does not know it"
        raise StorageMismatch(f"Storage '{name}' was at {place.location} when it was checked; the catalog {now} now.")
    # One in memory has no other place than its instance, which its name carries.
    if known[name].instance_id is None and name in engine.storages:
        here = engine.storage(name)
        if here.fingerprint != place.fingerprint:
            raise StorageMismatch(
                f"Storage '{name}' is configured here at {here.location}; the catalog knows it at {place.location}."
            )
