"""What must be true, shown without bdr: by SQL on the catalog and a listing of the storage's folder.

Each function gives back what is wrong, a sentence each; nothing when all is well.
"""

from dataclasses import dataclass
from pathlib import Path

import asyncpg

from scripts.demo_run import shortened

MARKER = ".bdr-storage"

_WRONG_COUNTS = """
    SELECT file_key, file_name, ref_count FROM bdr.binary_data_reference WHERE ref_count <> $1 ORDER BY file_key
"""
_REFERENCES = "SELECT count(*) AS files, coalesce(sum(file_size), 0) AS bytes FROM bdr.binary_data_reference"
# An engine has some `pending` rows in hand for uploads to come; no object may belong to one.
_NOT_LIVE = """
    SELECT object_path, state, last_error FROM bdr.blob WHERE state NOT IN ('live', 'pending') ORDER BY object_path
"""
_BLOBS = "SELECT object_path, size FROM bdr.blob WHERE state <> 'pending'"
_LEFT = """
    SELECT (SELECT count(*) FROM bdr.binary_data_reference) AS references,
           (SELECT count(*) FROM bdr.blob WHERE state <> 'pending') AS blobs,
           (SELECT count(*) FROM bdr.blob) AS with_pending
"""
# One statement, so one snapshot: a reaper writes its record in the transaction that deletes the reference.
_RELEASED = """
    SELECT (SELECT count(*) FROM bdr.binary_data_reference WHERE ref_count = 0)
         + (SELECT count(*) FROM bdr.operation WHERE operation_type = 'reap') AS files
"""
_REAPED = """
    SELECT count(*) AS records, count(DISTINCT file_key) AS files,
           count(*) FILTER (WHERE detail ->> 'rule' = 'zero_ref_retention') AS by_rule
    FROM bdr.operation WHERE operation_type = 'reap' AND status = 'succeeded'
"""
_REAPERS = """
    SELECT i.name, count(o.operation_id) AS files
    FROM bdr.engine_instance i LEFT JOIN bdr.operation o ON o.instance_id = i.instance_id AND o.operation_type = 'reap'
    WHERE i.name LIKE 'reaper %' GROUP BY i.name ORDER BY i.name
"""
_INSTANCES = """
    SELECT array_agg(pid ORDER BY pid) AS pids, count(*) FILTER (WHERE stopped_at IS NULL) AS alive
    FROM bdr.engine_instance
"""


@dataclass(frozen=True)
class Place:
    """Where to look: the catalog, and the folder of the storage."""

    catalog: asyncpg.Connection
    objects: Path


async def wrong_while_held(place: Place, *, files: int, size: int, count: int) -> list[str]:
    """Every file has a reference with this count, a live blob and an object; nothing else is there."""
    found = await place.catalog.fetchrow(_REFERENCES)
    wrong = _unequal("references in the catalog", found["files"], files)
    wrong += _unequal("bytes in the catalog", found["bytes"], size)
    wrong += await _wrong_counts(place, count)
    blobs = [
        f"The blob {row['object_path']} is {row['state']}, not live. {row['last_error'] or ''}".strip()
        for row in await place.catalog.fetch(_NOT_LIVE)
    ]
    return wrong + shortened(blobs) + await _wrong_objects(place)


async def wrong_when_released(place: Place, *, files: int) -> list[str]:
    """Every reference that is still there has count 0; what a reaper has taken by now had it too."""
    found = await place.catalog.fetchrow(_RELEASED)
    return await _wrong_counts(place, 0) or _unequal("files released", found["files"], files)


async def wrong_at_the_end(place: Place, *, files: int, pids: list[int]) -> list[str]:
    """No reference, blob or object is left but the marker; every file was reaped once; every process said good-bye."""
    left = await place.catalog.fetchrow(_LEFT)
    wrong = _unequal("references left", left["references"], 0) + _unequal("blobs left", left["with_pending"], 0)
    wrong += await _wrong_objects(place)
    if not (place.objects / MARKER).is_file():
        wrong.append(f"The storage has lost its marker {MARKER}.")
    reaped = await place.catalog.fetchrow(_REAPED)
    wrong += _unequal("files reaped", reaped["files"], files)
    wrong += _unequal("records of a reap", reaped["records"], files)
    wrong += _unequal("files reaped because nobody referred to them", reaped["by_rule"], files)
    instances = await place.catalog.fetchrow(_INSTANCES)
    wrong += _unequal("processes that joined the catalog", instances["pids"], sorted(pids))
    return wrong + _unequal("processes that have not left it", instances["alive"], 0)


async def left(place: Place) -> int:
    """How many files the reapers still have to delete."""
    row = await place.catalog.fetchrow(_LEFT)
    return max(int(row["references"]), int(row["blobs"]))


async def reaped_by(place: Place) -> dict[str, int]:
    """How many files each reaper deleted."""
    return {row["name"]: row["files"] for row in await place.catalog.fetch(_REAPERS)}


def objects_in(folder: Path) -> dict[str, int]:
    """The size of every file below the storage's folder, by its path in there; the marker is no object."""
    found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found.pop(MARKER, None)
    return found


async def _wrong_counts(place: Place, count: int) -> list[str]:
    return shortened(
        [
            f"The count of {row['file_key']} ({row['file_name']}) is {row['ref_count']}, not {count}."
            for row in await place.catalog.fetch(_WRONG_COUNTS, count)
        ]
    )


async def _wrong_objects(place: Place) -> list[str]:
    recorded = {row["object_path"]: row["size"] for row in await place.catalog.fetch(_BLOBS)}
    found = objects_in(place.objects)
    missing = [f"The object {path} is gone; the catalog has it." for path in sorted(recorded.keys() - found.keys())]
    strange = [f"The object {path} is in no row of the catalog." for path in sorted(found.keys() - recorded.keys())]
    changed = [
        f"The object {path} has {found[path]} bytes; the catalog says {recorded[path]}."
        for path in sorted(recorded.keys() & found.keys())
        if found[path] != recorded[path]
    ]
    return shortened(missing) + shortened(strange) + shortened(changed)


def _unequal(what: str, found: object, expected: object) -> list[str]:
    return [] if found == expected else [f"{what[0].upper()}{what[1:]}: {found}, not {expected}."]
