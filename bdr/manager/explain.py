"""`explain`: gathers what is known of a key, without changing anything of it."""

from bdr.catalog import holder, reference
from bdr.catalog.base import AnyRow
from bdr.catalog.holder import Holding
from bdr.errors import ConfigError, FileNotFound, Gone, StillStoring, StorageUnavailable
from bdr.keys import is_file_key
from bdr.manager.description import as_details
from bdr.manager.engine import Engine
from bdr.manager.explanation import Explanation, State, reasons_to_live
from bdr.manager.retrieval import absent

_HOLDERS = 100
_STATES: dict[type[FileNotFound], State] = {Gone: State.GONE, StillStoring: State.STORING}


async def explain(engine: Engine, key: str) -> Explanation:
    """Why the file of a key is there, or why and when it went."""
    engine.require_open()
    if is_file_key(key):
        async with engine.database.reading() as connection:
            found = await reference.details(connection, [key])
            holders = await holder.holders_of(connection, key, _HOLDERS)
        if key in found:
            return await _alive(engine, key, found[key], holders)
    error = await absent(engine, key)
    return Explanation(file_key=key, state=_STATES.get(type(error), State.UNKNOWN), reasons=[str(error)])


async def _alive(engine: Engine, key: str, row: AnyRow, holders: list[Holding]) -> Explanation:
    details = as_details(row)
    state, place = await _look(engine, row)
    reasons = [place, *reasons_to_live(details, holders, row.holder_count)]
    return Explanation(file_key=key, state=state, reasons=reasons, details=details, holders=holders)


async def _look(engine: Engine, row: AnyRow) -> tuple[State, str]:
    place = f"at {row.object_path} in storage {row.storage_name!r}"
    try:
        found = await engine.storage(row.storage_name).get_metadata(row.object_path)
    except FileNotFound:
        return State.LOST, f"Its object is missing {place}, though the catalog holds the reference."
    except (StorageUnavailable, ConfigError) as error:
        return State.UNREACHABLE, f"Its object is {place}, which cannot be looked at: {error}"
    if found.size != row.file_size:
        return State.LOST, f"Its object {place} has {found.size} bytes; {row.file_size} were stored."
    return State.ALIVE, f"Its object is {place}, with the {found.size} bytes that were stored."
