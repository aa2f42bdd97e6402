"""What has expired: how much of it there is, and claiming it for a reaper."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import and_, bindparam, case, func, select, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.base import AnyRow
from bdr.catalog.blob import Blob, ClaimedBlob
from bdr.catalog.reference import DELETE, ORPHAN_BLOBS, DeletedReference, Reference

_RULE = case(
    # As `expire_now` leaves it.
    (
        and_(
            Reference.ref_count == 0,
            Reference.zero_ref_retention == timedelta(0),
            Reference.max_retention == timedelta(0),
        ),
        "deleted",
    ),
    (
        func.timezone("UTC", func.timezone("UTC", Reference.created_at) + Reference.max_retention) <= func.now(),
        "max_retention",
    ),
    else_="zero_ref_retention",
).label("rule")
_FROM = func.coalesce(bindparam("since", type_=TIMESTAMP(timezone=True)), text("'-infinity'::timestamptz"))
CLAIM_EXPIRED = (
    select(
        Reference.file_key,
        Reference.blob_id,
        Reference.namespace,
        Reference.file_size,
        _RULE,
        Reference.expires_at,
    )
    .join_from(Reference, Blob, Reference.blob_id == Blob.blob_id)
    .where(Reference.expires_at <= func.now(), Reference.expires_at >= _FROM, Blob.storage_name == bindparam("storage"))
    .order_by(Reference.expires_at)
    .limit(bindparam("batch"))
    .with_for_update(skip_locked=True, of=[Reference, Blob])
)
COUNT_EXPIRED = select(func.count()).where(Reference.expires_at <= func.now())
# In key order, so by the index: the table's front is where the oldest were, and may be pages without any row.
_SOME = select(Reference.file_key).order_by(Reference.file_key).limit(bindparam("batch")).subquery()
COUNT_UP_TO = select(func.count()).select_from(_SOME)


async def share_expired(connection: AsyncConnection, limit: int, share: float) -> tuple[int, int | None]:
    """How many references have expired, and how many there are at all if that is more than `limit` and `share` of them.

    What is counted grows with what has expired, not with the catalog; None stands for a catalog that is large enough.
    """
    expired = await connection.scalar(COUNT_EXPIRED) or 0
    if expired <= limit:
        return expired, None
    enough = math.ceil(expired / share)
    total = await connection.scalar(COUNT_UP_TO, {"batch": enough}) or 0
    return expired, total if total < enough else None


async def expired_by_storage(connection: AsyncConnection) -> dict[str, tuple[int, int]]:
    """How many references of each storage have expired, and how many there are; reads all of them."""
    expired = func.count().filter(Reference.expires_at <= func.now())
    query = select(Blob.storage_name, expired, func.count()).join_from(
        Reference, Blob, Reference.blob_id == Blob.blob_id
    )
    found = await connection.execute(query.group_by(Blob.storage_name))
    return {name: (gone, total) for name, gone, total in found}


class Expired(NamedTuple):
    """References that were deleted, and the blobs that nobody else refers to."""

    references: list[DeletedReference]
    blobs: list[ClaimedBlob]


async def claim_expired(
    connection: AsyncConnection,
    storage: str,
    batch: int,
    since: datetime | None = None,
    *,
    lease: timedelta | None = None,
) -> Expired:
    """Delete expired references of one storage and turn blobs left without any to `deleting`.

    Those blobs are claimed for `lease`, as by `blob.claim_due`, which need not write them once more then; without one
    they are due at once. Those that expired first come first. A pass goes on `since` where its last batch ended, and
    does not read again what had expired before in storages that are away.

    READ COMMITTED, three statements. The claim locks the reference and its blob, or takes neither:

    - a register, release or touch that is first holds the reference's lock: the claim skips it. When the claim is
      first they wait, then find no row.
    - an insert of another reference to the same blob holds the blob's KEY SHARE lock until it commits: the claim skips
      the blob. When the claim is first the insert waits, then fails, for the blob is not live any more.
    - a delete of the blob's other reference holds the blob's lock too, so of two that go at once one is second, and
      its last statement, whose snapshot is newer than the lock, sees that none is left. One combined statement would
      still see the other's row, and the blob would stay live for ever.
    """
    found = await connection.execute(CLAIM_EXPIRED, {"storage": storage, "batch": batch, "since": since})
    expired = [DeletedReference(*row) for row in found]
    claimed: list[ClaimedBlob] = []
    if expired:
        # fail point: reap.references-locked
        await connection.execute(DELETE, {"keys": [one.file_key for one in expired]})
        # fail point: reap.references-deleted
        blob_ids = list({one.blob_id for one in expired})
        begun, until = (0, timedelta(0)) if lease is None else (1, lease)
        orphaned = await connection.execute(ORPHAN_BLOBS, {"blob_ids": blob_ids, "begun": begun, "lease": until})
        rows: Sequence[AnyRow] = orphaned.all()
        claimed = [ClaimedBlob(*row) for row in rows]
    return Expired(expired, claimed)
