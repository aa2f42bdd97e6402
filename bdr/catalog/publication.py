"""Reserving places for many uploads, and publishing many: blobs turn live, their references and records with them.

One statement, so one commit and one answer for all of it. Publish and a reaper's claim both need the blob's lock, as in
`blob.publish`: what was claimed first is not in the answer, and nothing is inserted for it.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Interval,
    LargeBinary,
    Select,
    Text,
    Uuid,
    cast,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, insert
from sqlalchemy.sql.type_api import TypeEngine

from bdr.catalog.base import asked_for
from bdr.catalog.blob import LIVE, PENDING, RESERVE, Blob, Reservation, places
from bdr.catalog.database import Database
from bdr.catalog.operation import Operation, Record, over_running
from bdr.catalog.prepared import Prepared
from bdr.catalog.reference import Reference


@dataclass(frozen=True, slots=True)
class Publication:
    """What is to become of one upload: its reference's row, what the blob holds, and the record of the store."""

    row: dict[str, Any]
    size: int
    checksum: bytes
    record: Record


_REFERENCE: dict[str, TypeEngine[Any]] = {
    "file_key": Text(),
    "blob_id": Uuid(),
    "namespace": Text(),
    "mime_kind": Text(),
    "file_size": BigInteger(),
    "file_name": Text(),
    "file_kind": Text(),
    "file_extension": Text(),
    "directory": Text(),
    "last_modified": TIMESTAMP(timezone=True),
    "labels": Text(),
    "zero_ref_retention": Interval(),
    "max_retention": Interval(),
    "held_at_max_retention": Text(),
}
_RECORD: dict[str, TypeEngine[Any]] = {
    "operation_id": Uuid(),
    "instance_id": Uuid(),
    "elapsed": Interval(),
    "total_bytes": BigInteger(),
}
# As a CTE, so that the arrays are taken apart once.
_ASKED = select(asked_for("given", **_REFERENCE, **_RECORD, size=BigInteger(), checksum=LargeBinary())).cte("asked")

_NOW = func.clock_timestamp()
_NEW: dict[str, Any] = {name: _ASKED.c[name] for name in _REFERENCE} | {
    "labels": cast(_ASKED.c.labels, JSONB),
    "ref_count": literal_column("1"),
    "created_at": _NOW,
    "last_access_at": _NOW,
}
_ENDED: dict[str, Any] = {
    "operation_id": _ASKED.c.operation_id,
    "operation_type": literal_column("'store'"),
    "file_key": _ASKED.c.file_key,
    "namespace": _ASKED.c.namespace,
    "instance_id": _ASKED.c.instance_id,
    "total_bytes": _ASKED.c.total_bytes,
    "processed_bytes": _ASKED.c.size,
    "status": literal_column("'succeeded'"),
    "started_at": _NOW - _ASKED.c.elapsed,
    "updated_at": _NOW,
    "finished_at": _NOW,
}


def _publishing(*, skip_locked: bool) -> Select[Any]:
    # In key order, as all statements lock rows.
    locked = (
        select(Blob.blob_id)
        .join_from(Blob, _ASKED, Blob.blob_id == _ASKED.c.blob_id)
        .where(Blob.state == literal_column(f"'{PENDING}'"))
        .order_by(Blob.blob_id)
        .with_for_update(of=Blob, skip_locked=skip_locked)
        .cte("locked")
    )
    live = (
        update(Blob)
        .where(Blob.blob_id == locked.c.blob_id, Blob.blob_id == _ASKED.c.blob_id)
        .values(state=LIVE, size=_ASKED.c.size, checksum=_ASKED.c.checksum, next_attempt_at=null())
        .returning(Blob.blob_id)
        .cte("live")
    )
    published = _ASKED.join(live, live.c.blob_id == _ASKED.c.blob_id)
    references = insert(Reference).from_select(list(_NEW), select(*_NEW.values()).select_from(published))
    # In id order: whoever writes the progress of these operations locks them in that order too.
    ended = select(*_ENDED.values()).select_from(published).order_by(_ASKED.c.operation_id)
    records = over_running(insert(Operation).from_select(list(_ENDED), ended))
    return select(live.c.blob_id).add_cte(references.cte("made"), records.cte("recorded"))


_RESERVE = Prepared(RESERVE)
# By whether what is locked is passed over.
PUBLISH = {skip_locked: Prepared(_publishing(skip_locked=skip_locked)) for skip_locked in (False, True)}


async def reserve_many(
    database: Database, reservations: Callable[[], Sequence[Reservation] | None], lease: timedelta
) -> None:
    """Insert `pending` rows that belong to their uploads for `lease`.

    `reservations` is called once there is a connection, and when it gives None nothing is sent.
    """

    def values() -> dict[str, Any] | None:
        wanted = reservations()
        return None if wanted is None else places(wanted, lease)

    await database.fetch(_RESERVE, values)


async def publish_many(
    database: Database, publications: Callable[[], Sequence[Publication]], *, skip_locked: bool = False
) -> set[uuid.UUID]:
    """Publish uploads, each wholly or not at all; gives back the blobs of those that were not claimed before.

    With `skip_locked` it waits for nobody, and what somebody else has locked is not published either.
    `publications` is called once there is a connection, and when there are none nothing is sent.
    """

    def values() -> dict[str, Any] | None:
        wanted = publications()
        return parameters(wanted) if wanted else None

    found = await database.fetch(PUBLISH[skip_locked], values)
    return {row["blob_id"] for row in found}


def parameters(publications: Sequence[Publication]) -> dict[str, Any]:
    """What the statement takes: an array for each column."""
    columns: dict[str, list[Any]] = {name: [one.row[name] for one in publications] for name in _REFERENCE}
    columns |= {name: [getattr(one.record, name) for one in publications] for name in _RECORD}
    columns["labels"] = [json.dumps(labels) for labels in columns["labels"]]
    columns["size"] = [one.size for one in publications]
    columns["checksum"] = [one.checksum for one in publications]
    return {f"asked_{name}": values for name, values in columns.items()}
