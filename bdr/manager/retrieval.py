"""Reading: from a key to its place, from the place to the bytes, and what it means when they are not there."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from bdr.catalog import reference
from bdr.catalog.base import AnyRow
from bdr.catalog.reference import Location
from bdr.errors import Corrupt, FileNotFound, Gone, Lost
from bdr.keys import MAX_KEY_LENGTH, is_file_key
from bdr.manager.engine import Engine
from bdr.storage.protocol import BinaryDataStorage

# Hashing what is smaller costs less than handing it to a thread.
_HASHED_INLINE = 1024 * 1024

Read = Callable[[BinaryDataStorage, str], Awaitable[bytes]]


def not_found(key: str) -> FileNotFound:
    """The error for a key that no reference has."""
    shown = key if len(key) <= MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}…"
    return FileNotFound(f"There is no reference {shown!r} in the catalog.")


async def locate(engine: Engine, key: str) -> Location:
    """Where the bytes of a key lie; FileNotFound when there is no such reference."""
    engine.require_open()
    # Checked here: a NUL byte, for one, would be an error of the database.
    if is_file_key(key):
        async with engine.database.reading() as connection:
            found = await reference.resolve(connection, [key])
        if key in found:
            return found[key]
    raise not_found(key)


async def whole_row(engine: Engine, key: str) -> AnyRow:
    """All columns of a reference, with its blob's place; FileNotFound when there is no such reference."""
    engine.require_open()
    if is_file_key(key):
        async with engine.database.reading() as connection:
            found = await reference.details(connection, [key])
        if key in found:
            return found[key]
    raise not_found(key)


async def fetch(engine: Engine, key: str, location: Location, read: Read) -> bytes:
    """Read from where the bytes lie; when they are not there, the catalog is asked again before anything is said.

    A reader resolves without a lock. If a delete commits after that, the object may be gone when it is read: the
    second look finds no row, and the answer is Gone. If the row still means the same place, the object is lost.
    """
    storage = engine.storage(location.storage_name)
    try:
        return await read(storage, location.object_path)
    except FileNotFound as error:
        try:
            again = await locate(engine, key)
        except FileNotFound:
            raise Gone(f"The reference {key!r} was deleted while it was being read.") from error
        if (again.storage_name, again.object_path) == (location.storage_name, location.object_path):
            raise Lost(
                f"The object of {key!r} is not in storage '{location.storage_name}' ({storage.location}, path "
                f"{location.object_path}), though the catalog holds the reference."
            ) from error
    return await read(engine.storage(again.storage_name), again.object_path)


async def verify(key: str, location: Location, data: bytes) -> None:
    """Raise Corrupt unless `data` is what was stored."""
    if len(data) != location.size:
        raise Corrupt(f"The object of {key!r} has {len(data)} bytes; {location.size} were stored.")
    small = len(data) < _HASHED_INLINE
    digest = hashlib.sha256(data) if small else await asyncio.to_thread(hashlib.sha256, data)
    if digest.digest() != location.checksum:
        raise Corrupt(
            f"The object of {key!r} holds other bytes than were stored: its SHA-256 is {digest.hexdigest()}, "
            f"recorded is {location.checksum.hex()}."
        )
