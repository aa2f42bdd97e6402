"""`bdr put`: store files, and what comes in on standard input."""

import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from bdr.cli.failures import DONE, FAILED, UsageError, attempted, error_fields, tell
from bdr.cli.options import Common, Given, Json
from bdr.cli.output import JsonList, emit
from bdr.cli.progress import transfer
from bdr.cli.text import shown, size
from bdr.errors import BinaryStorageError, InvalidArgument, IoError
from bdr.threads import in_daemon_thread

if TYPE_CHECKING:
    from pydantic import ValidationError

    from bdr.lifecycle import BinaryDataLifecycleManager
    from bdr.reference import BinaryDataMetadata, BinaryDataReference

STDIN = "-"
_CHUNK = 1024 * 1024


async def put(
    paths: list[str],
    /,
    *,
    name: str | None = None,
    mime: str | None = None,
    namespace: str | None = None,
    label: list[str] | None = None,
    as_json: Json = False,
    common: Given,
) -> int:
    """Store files and print the key of each.

    A file that cannot be stored is reported and the others still go; the exit
    code is 1 then. With --json the output is a list: a reference for each path,
    or an object with path, error and type.

    For example:
        bdr put report.pdf chart.png --label workflow=invoices --label node=render
        tar c folder | bdr put - --name folder.tar

    Args:
        paths: Files, or - for standard input.
        name: The name to keep instead of the path's; for one file only.
        mime: The MIME type; found from the bytes when it is not given.
        namespace: What audits group by first, such as a tenant.
        label: A label such as workflow=invoices. May be repeated.
    """
    _check(paths, name)
    metadata = _usable({"mime_type": mime, "namespace": namespace, "labels": _labels(label or []), "file_name": name})
    return await _put_all(paths, metadata, as_json=as_json, common=common)


async def _put_all(paths: Sequence[str], metadata: "BinaryDataMetadata", *, as_json: bool, common: Common) -> int:
    from bdr.connect import connect

    code = DONE
    async with connect(settings=common.settings_to_connect()) as binary:
        with JsonList() if as_json else nullcontext() as listed:
            for path in paths:
                outcome = await attempted(_store(binary, path, metadata))
                _report(path, outcome, listed)
                code = FAILED if isinstance(outcome, BinaryStorageError) else code
    return code


async def _store(
    binary: "BinaryDataLifecycleManager", path: str, metadata: "BinaryDataMetadata"
) -> "BinaryDataReference":
    with transfer(path) as on_progress:
        if path == STDIN:
            return await binary.store_stream(_stdin(), metadata, on_progress=on_progress)
        return await binary.store_file(path, _named(metadata, path), on_progress=on_progress)


def _report(path: str, outcome: "BinaryDataReference | BinaryStorageError", listed: JsonList | None) -> None:
    if isinstance(outcome, BinaryStorageError):
        tell(outcome, path)
    if listed is None and not isinstance(outcome, BinaryStorageError):
        emit(f"{outcome.file_key}\t{size(outcome.file_size)}\t{shown(outcome.file_name or path)}")
    elif listed is not None:
        listed.add(_as_json(path, outcome))


def _as_json(path: str, outcome: "BinaryDataReference | BinaryStorageError") -> Mapping[str, Any]:
    if isinstance(outcome, BinaryStorageError):
        return {"path": path} | error_fields(outcome)
    return outcome.model_dump(mode="json")


def _check(paths: Sequence[str], name: str | None) -> None:
    if list(paths).count(STDIN) > 1:
        raise UsageError("Standard input, -, can be stored only once.")
    if name is not None and len(paths) > 1:
        raise UsageError("--name is the name of one file; there are several.")


def _labels(given: Sequence[str]) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise UsageError(f"--label is written name=value, not {text!r}.")
        if key in labels:
            raise UsageError(f"--label {key} is given twice.")
        labels[key] = value
    return labels


def _usable(values: Mapping[str, Any]) -> "BinaryDataMetadata":
    from pydantic import ValidationError

    from bdr.reference import BinaryDataMetadata

    try:
        return BinaryDataMetadata(**values)
    except ValidationError as error:
        options = {"mime_type": "--mime", "labels": "--label", "file_name": "--name", "namespace": "--namespace"}
        problems = [f"{options[name]}: {sentence}" for name, sentence in _problems(error)]
        raise UsageError("\n".join(problems)) from None


def _named(metadata: "BinaryDataMetadata", path: str) -> "BinaryDataMetadata":
    """The metadata with the path as its name, unless it has one; bytes that are no UTF-8 are replaced."""
    from pydantic import ValidationError

    from bdr.reference import BinaryDataMetadata

    if metadata.file_name is not None:
        return metadata
    name = os.fsencode(path).decode("utf-8", "replace")
    try:
        return BinaryDataMetadata(**metadata.model_dump() | {"file_name": name})
    except ValidationError as error:
        raise InvalidArgument("\n".join(f"{what}; give another with --name" for _, what in _problems(error))) from None


def _problems(error: "ValidationError") -> list[tuple[str, str]]:
    sentences = {"string_pattern_mismatch": "at most 128 letters, digits and ._:/-, the first a letter or digit"}
    return [
        (str(one["loc"][0]), sentences.get(one["type"], one["msg"].removeprefix("Value error, ")))
        for one in error.errors()
    ]


async def _stdin() -> AsyncIterator[bytes]:
    # A short chunk was the last: asked again, a terminal would wait to be told of its end a second time.
    chunk = bytes(_CHUNK)
    while len(chunk) == _CHUNK:
        chunk = await in_daemon_thread(partial(_read, sys.stdin.fileno()))
        yield chunk


def _read(descriptor: int) -> bytes:
    """A whole chunk, or what there is before the end."""
    parts: list[bytes] = []
    left = _CHUNK
    try:
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise IoError(f"Standard input cannot be read: {error.strerror}.") from error
    return b"".join(parts)
