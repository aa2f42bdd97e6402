"""`bdr stat`, `ls`, `explain` and `rm`: references, what is known of them and why they are there."""

import json
from typing import TYPE_CHECKING, Any

from bdr.cli.catalog import catalog
from bdr.cli.failures import DONE, FAILED, NO_SUCH_REFERENCE, UsageError
from bdr.cli.options import Given, Json, Key, Limit
from bdr.cli.output import emit, emit_fields, emit_json, emit_table
from bdr.cli.text import NOTHING, moment, size
from bdr.errors import OperationError, Pinned

if TYPE_CHECKING:
    from bdr.manager.description import BinaryDataDetails

_CODES = {"alive": DONE, "lost": FAILED, "unreachable": FAILED}
_CODES |= dict.fromkeys(("storing", "gone", "unknown"), NO_SUCH_REFERENCE)
_COLUMNS = ("KEY", "SIZE", "COUNT", "TYPE", "NAMESPACE", "STORED", "EXPIRES", "NAME")


async def stat(key: Key, /, *, as_json: Json = False, common: Given) -> None:
    """Show all that the catalog knows of a reference."""
    from bdr.keys import is_file_key
    from bdr.manager.description import as_details
    from bdr.manager.retrieval import absence, not_found

    async with catalog(common.settings()) as database, database.reading() as connection:
        from bdr.catalog import reference

        if not is_file_key(key):
            raise not_found(key)
        found = await reference.details(connection, [key])
        if key not in found:
            raise await absence(connection, key)
    details = as_details(found[key])
    if as_json:
        emit_json(details.model_dump(mode="json"))
    else:
        emit_fields(_fields(details))


async def ls(
    *,
    namespace: str | None = None,
    limit: Limit = 100,
    before: str | None = None,
    as_json: Json = False,
    common: Given,
) -> None:
    """List references, the newest first.

    For example:
        bdr ls --namespace tenant-1 --limit 20
        bdr ls --before 06abcdefghijklmnopqrstuvwx.pdf

    Args:
        namespace: Only those of this namespace.
        before: Only those older than this key: the last one of the page before.
    """
    from bdr.catalog import reference
    from bdr.keys import is_file_key
    from bdr.manager.description import as_details

    if before is not None and not is_file_key(before):
        raise UsageError(f"--before is a file key, which {before!r} is not.")
    async with catalog(common.settings()) as database, database.reading() as connection:
        page = [as_details(row) for row in await reference.page(connection, before, limit, namespace)]
    if as_json:
        emit_json([details.model_dump(mode="json") for details in page])
    else:
        emit_table(_COLUMNS, (_row(details) for details in page))


async def explain(key: Key, /, *, as_json: Json = False, common: Given) -> int:
    """Say why a file is still there, or why and when it went.

    The exit code is 0 for a file that is there; 3 when there is no such
    reference (any more, or yet); 1 when its object is lost or cannot be looked
    at.
    """
    from bdr.connect import connect

    async with connect(settings=common.settings_to_connect()) as binary:
        explanation = await binary.explain(key)
    if as_json:
        emit_json(explanation.model_dump(mode="json"))
    else:
        because = (("because", reason) for reason in explanation.reasons)
        emit_fields([("file_key", key), ("state", explanation.state), *because])
    return _CODES[explanation.state]


async def rm(key: Key, /, *, force: bool = False, as_json: Json = False, common: Given) -> None:
    """Delete a file that nothing refers to any more.

    Args:
        force: Delete it whatever its count, and even when it is pinned.
    """
    from bdr.connect import connect
    from bdr.manager.deletion import Deletion, Terms

    async with connect(settings=common.settings_to_connect()) as binary:
        verdict = await binary.delete(key, Terms("delete", whatever_the_count=force, force=force))
        if verdict is Deletion.PINNED:
            raise Pinned(f"The reference {key!r} is pinned; --force deletes it all the same.")
        if verdict is Deletion.REFERENCED:
            count = (await binary.get_details(key)).ref_count
            raise OperationError(
                f"The reference {key!r} is still held (count {count}): release it first, or delete it with --force."
            )
    if as_json:
        emit_json({"file_key": key, "deleted": True})
    else:
        emit(f"deleted {key}")


def _row(details: "BinaryDataDetails") -> tuple[str, ...]:
    reference = details.reference
    return (
        reference.file_key,
        size(reference.file_size),
        f"{details.ref_count} pinned" if details.pinned else str(details.ref_count),
        reference.mime_kind,
        details.namespace,
        moment(details.created_at),
        moment(details.expires_at),
        reference.file_name or NOTHING,
    )


def _fields(details: "BinaryDataDetails") -> list[tuple[str, str]]:
    values: dict[str, Any] = details.model_dump(mode="json")
    values = values.pop("reference") | values
    values["file_size"] = f"{details.reference.file_size} ({size(details.reference.file_size)})"
    return [(name, _written(value)) for name, value in values.items()]


def _written(value: Any) -> str:
    if value is None:
        return NOTHING
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | bool) else str(value)
