"""The statements that compare the catalog with its storages, and those that repair what differs.

Blobs are read in the order of their paths, which is that of their bytes, so what lies in one folder comes together.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Text, bindparam, case, exists, func, literal_column, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.base import AnyRow, in_order
from bdr.catalog.blob import LIVE, QUARANTINED, Blob
from bdr.catalog.holder import ReferenceHolder
from bdr.catalog.reference import DELETE, LOCK_BLOBS, ORPHAN_BLOBS, Reference

SIZE_DIFFERS: Final = "its size is not its blob's"
HOLDERS_DIFFER: Final = "it counts another number of holders than it has"
_SHOWN_KEYS = 5

# Not EXISTS, which the planner may answer by reading all references into a hash table, for every batch anew.
_REFERENCED = (
    select(literal_column("1"))
    .where(Reference.blob_id == Blob.blob_id)
    .correlate(Blob)
    .limit(literal_column("1"))
    .scalar_subquery()
    .is_not(None)
    .label("referenced")
)
LIVE_FROM = (
    select(Blob.object_path, Blob.size, _REFERENCED)
    .where(
        Blob.storage_name == bindparam("storage"),
        Blob.object_path > bindparam("after", type_=Text()),
        Blob.state == LIVE,
    )
    .order_by(Blob.object_path)
    .limit(bindparam("batch"))
)
LIVE_BETWEEN = LIVE_FROM.where(Blob.object_path < bindparam("until", type_=Text()))
OWNERS = select(Blob.object_path, Blob.blob_id, Blob.state, Blob.size, Blob.checksum, _REFERENCED).where(
    Blob.storage_name == bindparam("storage"), Blob.object_path == func.any(bindparam("paths"))
)
REFERENCES = (
    select(Reference.blob_id, func.count(), func.array_agg(Reference.file_key)[1:_SHOWN_KEYS])
    .where(Reference.blob_id == func.any(bindparam("blob_ids")))
    .group_by(Reference.blob_id)
)
_HOLDERS = (
    select(func.count()).where(ReferenceHolder.file_key == Reference.file_key).correlate(Reference).scalar_subquery()
)
_PROBLEM = case(
    (Blob.state.is_distinct_from(LIVE), "its blob is not live"),
    (Reference.ref_count < 0, "its count is below zero"),
    (Reference.file_size != Blob.size, SIZE_DIFFERS),
    (Reference.holder_count != _HOLDERS, HOLDERS_DIFFER),
).label("problem")
_COUNTS = select(
    Reference.file_key, Reference.blob_id, Blob.storage_name, Reference.file_size, Blob.size, _PROBLEM
).join_from(Reference, Blob, Reference.blob_id == Blob.blob_id, isouter=True)
COUNTS_FROM = (
    _COUNTS.where(Reference.file_key > bindparam("after", type_=Text()))
    .order_by(Reference.file_key)
    .limit(bindparam("batch"))
)
_LOCK_KEYS = (
    select(Reference.file_key)
    .where(Reference.file_key == func.any(bindparam("keys")))
    .order_by(Reference.file_key)
    .with_for_update()
)
_CORRECT_SIZE = (
    update(Reference)
    .where(
        Reference.file_key == func.any(bindparam("keys")),
        Reference.blob_id == Blob.blob_id,
        Reference.file_size != Blob.size,
    )
    .values(file_size=Blob.size)
    .returning(Reference.file_key)
)
# The anonymous registrations stay as many as they are.
_CORRECT_HOLDERS = (
    update(Reference)
    .where(Reference.file_key == func.any(bindparam("keys")), Reference.holder_count != _HOLDERS)
    .values(ref_count=Reference.ref_count - Reference.holder_count + _HOLDERS, holder_count=_HOLDERS)
    .returning(Reference.file_key)
)
_TOTAL_SIZE = select(func.sum(Blob.size)).where(
    Blob.storage_name == func.any(bindparam("storages")), Blob.state == LIVE
)
_ADOPT = insert(Blob).values(state=QUARANTINED).on_conflict_do_nothing()
LOCK_REFERENCES_OF = (
    select(Reference.file_key, Reference.blob_id, Reference.namespace, Reference.file_size)
    .where(Reference.blob_id == func.any(bindparam("blob_ids")))
    .order_by(Reference.file_key)
    .with_for_update()
)
_QUARANTINE = (
    update(Blob)
    .where(
        Blob.blob_id == func.any(bindparam("blob_ids")),
        Blob.state == LIVE,
        ~exists().where(Reference.blob_id == Blob.blob_id).correlate(Blob),
    )
    .values(state=QUARANTINED, next_attempt_at=null(), last_error=bindparam("why"))
    .returning(Blob.blob_id)
)


@dataclass(frozen=True, slots=True)
class Expected:
    """A live blob whose object must be there, with as many bytes."""

    path: str
    size: int
    referenced: bool


@dataclass(frozen=True, slots=True)
class Owner:
    """The blob that owns a path, in whatever state."""

    path: str
    blob_id: uuid.UUID
    state: str
    size: int | None
    checksum: bytes | None
    referenced: bool

    @property
    def is_live(self) -> bool:
        """Whether its object must be there."""
        return self.state == LIVE


@dataclass(frozen=True, slots=True)
class Counts:
    """What a reference says of itself, and what its blob says; `problem` is None when they agree."""

    file_key: str
    blob_id: uuid.UUID
    storage_name: str | None
    file_size: int
    blob_size: int | None
    problem: str | None


async def now(connection: AsyncConnection) -> datetime:
    """The database's time."""
    moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return moment


async def total_size(connection: AsyncConnection, storages: Sequence[str]) -> int:
    """Bytes of all live blobs in these storages."""
    return int(await connection.scalar(_TOTAL_SIZE, {"storages": list(storages)}) or 0)


async def live(connection: AsyncConnection, storage: str, after: str, until: str | None, batch: int) -> list[Expected]:
    """Live blobs whose paths come after `after` and before `until`, in the order of their paths."""
    range_ = {"storage": storage, "after": after, "batch": batch}
    if until is None:
        found = await connection.execute(LIVE_FROM, range_)
    else:
        found = await connection.execute(LIVE_BETWEEN, {**range_, "until": until})
    return [Expected(row.object_path, row.size or 0, row.referenced) for row in found]


async def owners(connection: AsyncConnection, storage: str, paths: Sequence[str]) -> dict[str, Owner]:
    """Who owns these paths; those that nobody owns are left out."""
    found = await connection.execute(OWNERS, {"storage": storage, "paths": list(paths)})
    return {row.object_path: Owner(*row) for row in found}


async def references(
    connection: AsyncConnection, blob_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, tuple[int, list[str]]]:
    """How many references each blob has, and the keys of some."""
    found = await connection.execute(REFERENCES, {"blob_ids": list(blob_ids)})
    return {blob_id: (count, keys) for blob_id, count, keys in found}


async def counts(connection: AsyncConnection, after: str, batch: int) -> list[Counts]:
    """References after a key, in key order."""
    return [Counts(*row) for row in await connection.execute(COUNTS_FROM, {"after": after, "batch": batch})]


async def correct(connection: AsyncConnection, keys: Sequence[str]) -> set[str]:
    """Give references the size of their blobs and the number of their holders; gives back those that had another.

    Whoever changes any of these locks the reference first. Those that are first are waited for; what they did is seen
    by the later statements, whose snapshots are newer than the locks.
    """
    given = {"keys": in_order(keys)}
    await connection.execute(_LOCK_KEYS, given)
    sizes = await connection.execute(_CORRECT_SIZE, given)
    holders = await connection.execute(_CORRECT_HOLDERS, given)
    return {*sizes.scalars(), *holders.scalars()}


async def adopt(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert quarantined blobs, unless they are there already."""
    await connection.execute(_ADOPT, list(rows))


async def retire(
    connection: AsyncConnection, blob_ids: Sequence[uuid.UUID], *, quarantined_because: str | None
) -> tuple[Sequence[AnyRow], set[uuid.UUID]]:
    """Delete the references of live blobs, and turn the blobs to `quarantined` or, without a reason, to `deleting`.

    Gives back the references, and the blobs that were turned. READ COMMITTED, four statements; the locks are taken as
    everywhere, references in key order, then blobs in id order:

    - a register, release or delete that has the reference first is waited for. The delete then leaves no row and no
      live blob, so nothing is done here. When we are first they wait, then find no row.
    - a reaper that has claimed the reference holds it until the blob is `deleting`; it is waited for as well. When we
      are first it skips them.
    - an insert of one more reference holds the blob's KEY SHARE lock: LOCK_BLOBS waits for it, and the last statement,
      whose snapshot is newer than the lock, sees the reference and leaves the blob live. When we are first the insert
      waits, then fails, for the blob is not live any more.
    """
    deleted = (await connection.execute(LOCK_REFERENCES_OF, {"blob_ids": sorted(blob_ids)})).all()
    await connection.execute(LOCK_BLOBS, {"blob_ids": sorted(blob_ids)})
    if deleted:
        await connection.execute(DELETE, {"keys": [row.file_key for row in deleted]})
    if quarantined_because is None:
        due = {"blob_ids": sorted(blob_ids), "begun": 0, "lease": timedelta(0)}
        turned = await connection.execute(ORPHAN_BLOBS, due)
    else:
        turned = await connection.execute(_QUARANTINE, {"blob_ids": sorted(blob_ids), "why": quarantined_because})
    return deleted, {row.blob_id for row in turned}
