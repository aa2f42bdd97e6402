"""`bdr register`, `release`, `holders`, `pin` and `unpin`: who holds a file, how often, and for how long."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bdr.cli.failures import DONE, UsageError, attempted, error_fields, tell
from bdr.cli.options import Common, Given, Json, Key, Limit, duration
from bdr.cli.output import JsonList, emit, emit_json, emit_table
from bdr.cli.text import NOTHING, moment

if TYPE_CHECKING:
    from bdr.catalog.holder import Holding

Holder = Annotated[str | None, Parameter(help="Who holds it, such as execution-42/node-3.")]
Keys = Annotated[list[str], Parameter(help="File keys.")]

_COLUMNS = ("HOLDER", "INSTANCE", "ACQUIRED", "LEASE EXPIRES", "KEY")


async def register(
    key: Key, /, *, holder: Holder = None, lease: str | None = None, as_json: Json = False, common: Given
) -> None:
    """Count one more use of a file and print the new count.

    A holder counts once, however often it registers.

    For example:
        bdr register 06abcdefghijklmnopqrstuvwx.pdf
        bdr register 06abcdefghijklmnopqrstuvwx.pdf --holder backup --lease 12h

    Args:
        lease: The holder is released so long after this, unless it registers again before: 90s, 12h, 7d.
    """
    from bdr.connect import connect

    if lease is not None and holder is None:
        raise UsageError("--lease belongs to a holder: give --holder, too.")
    length = None if lease is None else duration("--lease", lease)
    async with connect(settings=common.settings_to_connect()) as binary:
        count = await binary.register_reference(key, holder=holder, lease=length)
    _emit_count(key, count, as_json=as_json)


async def release(key: Key | None = None, /, *, holder: Holder = None, as_json: Json = False, common: Given) -> None:
    """Count one use less of a file and print the new count.

    At zero the retention begins, and when it is over a reaper deletes the file.
    A retention of zero deletes it at once. With a holder and no key, all that it
    holds is released, and the number of files is printed.

    For example:
        bdr release 06abcdefghijklmnopqrstuvwx.pdf --holder backup
        bdr release --holder execution-42/node-3
    """
    from bdr.connect import connect

    if key is None and holder is None:
        raise UsageError("Give the KEY of a file, or --holder to release all that it holds.")
    async with connect(settings=common.settings_to_connect()) as binary:
        if key is not None:
            count = await binary.release_reference(key, holder=holder)
        else:
            count = await binary.release_holder(holder or "")
    if key is not None:
        _emit_count(key, count, as_json=as_json)
    elif as_json:
        emit_json({"holder": holder, "released": count})
    else:
        emit(str(count))


async def holders(
    key: Key | None = None, /, *, holder: Holder = None, limit: Limit = 100, as_json: Json = False, common: Given
) -> None:
    """List who holds a file by name, or what a holder holds.

    Those come first who have held it longest; of a holder the oldest files.

    For example:
        bdr holders 06abcdefghijklmnopqrstuvwx.pdf
        bdr holders --holder execution-42/node-3
    """
    from bdr.connect import connect

    if (key is None) == (holder is None):
        raise UsageError("Give the KEY of a file, or --holder to see what it holds.")
    async with connect(settings=common.settings_to_connect()) as binary:
        if key is not None:
            found = await binary.get_holders(key, limit)
        else:
            found = await binary.get_held(holder or "", limit)
    if as_json:
        emit_json(_as_json(found))
    else:
        emit_table(_COLUMNS, map(_row, found))


async def pin(keys: Keys, /, *, as_json: Json = False, common: Given) -> int:
    """Keep files, whatever their counts and retention."""
    return await _set_pinned(keys, common, pinned=True, as_json=as_json)


async def unpin(keys: Keys, /, *, as_json: Json = False, common: Given) -> int:
    """Let the counts and retention of files decide again.

    What would have expired meanwhile may be reaped at once.
    """
    return await _set_pinned(keys, common, pinned=False, as_json=as_json)


async def _set_pinned(keys: Sequence[str], common: Common, *, pinned: bool, as_json: bool) -> int:
    """Each by itself: one that is not there is told of, and the others still change."""
    from bdr.connect import connect

    code = DONE
    async with connect(settings=common.settings_to_connect()) as binary:
        with JsonList() if as_json else nullcontext() as listed:
            for key in keys:
                error = await attempted(binary.pin(key) if pinned else binary.unpin(key))
                code = code if error is None else max(code, tell(error, key))
                if listed is not None:
                    listed.add({"file_key": key} | ({"pinned": pinned} if error is None else error_fields(error)))
                elif error is None:
                    emit(f"{'pinned' if pinned else 'unpinned'} {key}")
    return code


def _emit_count(key: str, count: int, *, as_json: bool) -> None:
    if as_json:
        emit_json({"file_key": key, "ref_count": count})
    else:
        emit(str(count))


def _row(one: "Holding") -> tuple[str, ...]:
    instance = NOTHING if one.instance_id is None else str(one.instance_id)
    return one.holder, instance, moment(one.acquired_at), moment(one.lease_expires_at), one.file_key


def _as_json(found: "Sequence[Holding]") -> object:
    from pydantic import TypeAdapter

    from bdr.catalog.holder import Holding

    return TypeAdapter(list[Holding]).dump_python(list(found), mode="json")
