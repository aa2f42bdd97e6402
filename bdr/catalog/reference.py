"""The table of references: rows, retention, and the statements that create, find and delete them.

Who locks first, everywhere: reference rows in key order, then blob rows in id order. A reaper never waits for either
(SKIP LOCKED), so no circle of waiting can form. Counting stands in `bdr.catalog.count`.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    ForeignKeyConstraint,
    Index,
    Interval,
    Text,
    Uuid,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from bdr.catalog.base import HOT_FILLFACTOR, AnyRow, Base, Moment, in_order
from bdr.catalog.blob import DELETING, LIVE, Blob
from bdr.catalog.database import Database
from bdr.catalog.prepared import Prepared

# `timestamptz + interval` depends on the session's time zone, so a generated column may not use it; a sum made in UTC
# does not.
EXPIRES_AT = (
    "CASE WHEN pinned THEN NULL ELSE least("
    "CASE WHEN ref_count = 0 OR held_at_max_retention = 'delete' "
    "THEN (created_at AT TIME ZONE 'UTC' + max_retention) AT TIME ZONE 'UTC' END, "
    "CASE WHEN ref_count = 0 THEN (last_access_at AT TIME ZONE 'UTC' + zero_ref_retention) AT TIME ZONE 'UTC' END"
    ") END"
)
_RETENTION = "BETWEEN interval '0' AND interval '1000 years'"


class Reference(Base):
    """What a file key stands for: a file's description, its count and its retention; several may share a blob."""

    __tablename__ = "binary_data_reference"
    __table_args__ = (
        # A plain foreign key on blob_id would let an insert revive a blob that has just been turned to `deleting`.
        ForeignKeyConstraint(["blob_id", "blob_state"], ["bdr.blob.blob_id", "bdr.blob.state"]),
        # Not one expression with a bounded repetition: that costs more than all the rest of a count.
        CheckConstraint(
            "octet_length(file_key) BETWEEN 1 AND 128 AND file_key !~ '[^0-9A-Za-z._-]'",
            name="file_key",
        ),
        CheckConstraint("file_size >= 0", name="file_size"),
        CheckConstraint("ref_count >= 0", name="ref_count"),
        CheckConstraint("holder_count BETWEEN 0 AND ref_count", name="holder_count"),
        CheckConstraint(f"zero_ref_retention {_RETENTION}", name="zero_ref_retention"),
        CheckConstraint(f"max_retention {_RETENTION}", name="max_retention"),
        CheckConstraint("held_at_max_retention IN ('delete', 'keep')", name="held_at_max_retention"),
        CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels"),
        Index("ix_binary_data_reference_blob_id", "blob_id"),
        Index("ix_binary_data_reference_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
        # Lists one namespace, newest first. No index may name ref_count or last_access_at: every count would then write
        # to all indexes (no HOT update).
        Index("ix_binary_data_reference_namespace_file_key", "namespace", "file_key"),
        {"comment": "One row for each BinaryDataReference that can be read."} | HOT_FILLFACTOR,
    )

    file_key: Mapped[str] = mapped_column(
        Text(collation="C"), primary_key=True, comment="What nodes pass around; sorts by the time it was made."
    )
    blob_id: Mapped[uuid.UUID] = mapped_column(Uuid, comment="The blob that holds the bytes; several may share it.")
    blob_state: Mapped[str] = mapped_column(
        Text, Computed("'live'", persisted=True), comment="Always live: only live blobs can be referenced."
    )
    namespace: Mapped[str] = mapped_column(
        Text, server_default=text("'default'"), comment="What audits group by first, such as a tenant."
    )
    mime_kind: Mapped[str] = mapped_column(Text, comment="MIME type.")
    file_size: Mapped[int] = mapped_column(BigInteger, comment="Bytes.")
    file_name: Mapped[str | None] = mapped_column(Text, comment="The file's own name, for people.")
    file_kind: Mapped[str | None] = mapped_column(
        Text, comment="text, json, image, video, audio, pdf, html, excel, word, ppt, or null."
    )
    file_extension: Mapped[str | None] = mapped_column(Text, comment="Extension of the file's name, without the dot.")
    directory: Mapped[str | None] = mapped_column(Text, comment="What stood before the file's name.")
    last_modified: Mapped[Moment | None] = mapped_column(comment="When the file was last changed, as the caller said.")
    labels: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'"), comment="Workflow, execution, node, port: what else audits group by."
    )
    ref_count: Mapped[int] = mapped_column(BigInteger, comment="Registrations (the store is one) minus releases.")
    holder_count: Mapped[int] = mapped_column(
        BigInteger, server_default=text("0"), comment="How many of ref_count are by name: rows of reference_holder."
    )
    pinned: Mapped[bool] = mapped_column(Boolean, server_default=text("false"), comment="Never expires while true.")
    created_at: Mapped[Moment] = mapped_column(server_default=func.now(), comment="When it was stored.")
    last_access_at: Mapped[Moment] = mapped_column(
        server_default=func.now(), comment="Last registration, release or read; reads may be noted a minute late."
    )
    zero_ref_retention: Mapped[timedelta | None] = mapped_column(
        Interval, comment="Kept this long after the last access while ref_count is 0; null is for ever."
    )
    max_retention: Mapped[timedelta | None] = mapped_column(
        Interval, comment="Kept this long after created_at; null is for ever."
    )
    held_at_max_retention: Mapped[str] = mapped_column(
        Text,
        server_default=text("'delete'"),
        comment="What becomes of it at max_retention while ref_count is not 0: delete, or keep until it is 0.",
    )
    expires_at: Mapped[Moment | None] = mapped_column(
        Computed(EXPIRES_AT, persisted=True), comment="From then on a reaper may delete it; null is never."
    )


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a reference lie, and what they must be."""

    blob_id: uuid.UUID
    storage_name: str
    object_path: str
    size: int
    checksum: bytes
    ref_count: int


@dataclass(frozen=True, slots=True)
class DeletedReference:
    """A reference that a statement deleted; `blob_id` may still serve others."""

    file_key: str
    blob_id: uuid.UUID
    namespace: str
    file_size: int
    rule: str
    expired_at: datetime | None = None


RESOLVE = (
    select(
        Reference.file_key,
        Blob.blob_id,
        Blob.storage_name,
        Blob.object_path,
        Blob.size,
        Blob.checksum,
        Reference.ref_count,
    )
    .join_from(Reference, Blob, Reference.blob_id == Blob.blob_id)
    .where(Reference.file_key == func.any(bindparam("keys", type_=ARRAY(Text()))))
)
_RESOLVE = Prepared(RESOLVE)
_DETAILS = select(*Reference.__table__.c, Blob.storage_name, Blob.object_path, Blob.checksum).join_from(
    Reference, Blob, Reference.blob_id == Blob.blob_id
)
DETAILS = _DETAILS.where(Reference.file_key == func.any(bindparam("keys")))
PAGE = (
    _DETAILS.where(Reference.file_key < bindparam("before", type_=Text()))
    .order_by(Reference.file_key.desc())
    .limit(bindparam("batch"))
)

_TO_LOCK = (
    select(
        Reference.file_key,
        Reference.blob_id,
        Reference.namespace,
        Reference.file_size,
        Reference.ref_count,
        Reference.pinned,
    )
    .where(Reference.file_key == func.any(bindparam("keys")))
    .order_by(Reference.file_key)
)
LOCK_REFERENCES = _TO_LOCK.with_for_update()
LOCK_FREE_REFERENCES = _TO_LOCK.with_for_update(skip_locked=True)
LOCK_BLOBS = (
    select(Blob.blob_id).where(Blob.blob_id == func.any(bindparam("blob_ids"))).order_by(Blob.blob_id).with_for_update()
)
DELETE = delete(Reference).where(Reference.file_key == func.any(bindparam("keys")))
ORPHAN_BLOBS = (
    update(Blob)
    .where(
        Blob.blob_id == func.any(bindparam("blob_ids")),
        Blob.state == LIVE,
        ~exists().where(Reference.blob_id == Blob.blob_id).correlate(Blob),
    )
    .values(
        state=DELETING,
        attempts=bindparam("begun", type_=BigInteger()),
        next_attempt_at=func.now() + bindparam("lease", type_=Interval()),
    )
    .returning(Blob.blob_id, Blob.storage_name, Blob.object_path, Blob.next_attempt_at, Blob.size)
)


# Not `now()`, the columns' default: a caller's transaction may have begun long ago, and retention counts from here.
_CREATE = insert(Reference).values(
    ref_count=1, created_at=func.clock_timestamp(), last_access_at=func.clock_timestamp()
)


async def create(connection: AsyncConnection, row: dict[str, Any]) -> None:
    """Insert a reference with count 1; its blob must be live by then, or the foreign key refuses it."""
    await connection.execute(_CREATE, row)


async def resolve(database: Database, keys: Sequence[str]) -> dict[str, Location]:
    """Where the bytes of each key lie; keys without a reference are left out."""
    found = await database.look_up(_RESOLVE, {"keys": in_order(keys)})
    return {row["file_key"]: Location(*(row[name] for name in Location.__slots__)) for row in found}


async def details(connection: AsyncConnection, keys: Sequence[str]) -> dict[str, AnyRow]:
    """Whole rows, with the blob's storage, path and checksum; keys without a reference are left out."""
    found = await connection.execute(DETAILS, {"keys": in_order(keys)})
    return {row.file_key: row for row in found}


async def page(
    connection: AsyncConnection, before: str | None, batch: int, namespace: str | None = None
) -> Sequence[AnyRow]:
    """The newest references before a key (from the newest when None), at most `batch`."""
    query = PAGE if namespace is None else PAGE.where(Reference.namespace == namespace)
    # '~' sorts after every character that a key may have.
    return (await connection.execute(query, {"before": before or "~", "batch": batch})).all()


async def exists_with(connection: AsyncConnection, key: str, blob_id: uuid.UUID) -> bool:
    """Whether this very reference is there: the answer to a commit whose own answer was lost."""
    found = await connection.scalar(
        select(Reference.blob_id).where(Reference.file_key == key, Reference.blob_id == blob_id)
    )
    return found is not None


async def lock(connection: AsyncConnection, keys: Sequence[str], *, skip_locked: bool = False) -> dict[str, AnyRow]:
    """Lock references in key order and read their counts as they are now; `skip_locked`, those that nobody holds."""
    statement = LOCK_FREE_REFERENCES if skip_locked else LOCK_REFERENCES
    found = await connection.execute(statement, {"keys": in_order(keys)})
    return {row.file_key: row for row in found}


async def remove(connection: AsyncConnection, locked: Sequence[AnyRow], lease: timedelta) -> Sequence[AnyRow]:
    """Delete references locked by `lock`; gives back their blobs left without any, claimed for `lease`.

    The blobs are locked after the references and before the delete, for the reasons given at `expiry.claim_expired`.
    """
    blob_ids = sorted({row.blob_id for row in locked})
    await connection.execute(LOCK_BLOBS, {"blob_ids": blob_ids})
    await connection.execute(DELETE, {"keys": [row.file_key for row in locked]})
    orphaned = await connection.execute(ORPHAN_BLOBS, {"blob_ids": blob_ids, "begun": 1, "lease": lease})
    return orphaned.all()


async def expire_now(connection: AsyncConnection, keys: Sequence[str], *, whatever_the_count: bool) -> None:
    """Leave references to the reaper: nothing else may be done inside a caller's transaction, it may roll back.

    With `whatever_the_count` the count goes to zero and the longest life to nothing, so a later registration does not
    save it; otherwise only the life after the last release does, and a registration does save it.
    """
    ended: dict[str, Any] = {"zero_ref_retention": timedelta(0)}
    if whatever_the_count:
        ended |= {
            "ref_count": 0,
            "holder_count": 0,
            "max_retention": timedelta(0),
            "held_at_max_retention": "delete",
            "pinned": False,
        }
    await connection.execute(update(Reference).where(Reference.file_key.in_(in_order(keys))).values(ended))


async def set_pinned(connection: AsyncConnection, key: str, *, pinned: bool) -> bool:
    """Pin or unpin a reference; False when there is none."""
    done = await connection.execute(update(Reference).where(Reference.file_key == key).values(pinned=pinned))
    return done.rowcount == 1
