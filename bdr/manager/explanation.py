"""Why a file is still there, or why and when it went: from its row, its holders and the operation records."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel

from bdr.catalog.base import AnyRow
from bdr.catalog.holder import Holding
from bdr.errors import FileNotFound, Gone, StillStoring
from bdr.manager.description import BinaryDataDetails
from bdr.progress import OperationStatus

_ENDS = {
    "delete": "was deleted",
    "cleanup": "was cleaned up, when nothing referred to it",
    "fsck": "was removed by a repair, for its object was missing or broken",
}
_RULES = {
    "max_retention": "expired: its max_retention was over",
    "zero_ref_retention": "expired: nothing had referred to it for its zero_ref_retention",
    "deleted": "was deleted in a transaction, and then reaped",
    "memory_gone": "was in the memory of an engine instance that has stopped",
}


class State(StrEnum):
    """What a key stands for now."""

    ALIVE = "alive"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    STORING = "storing"
    GONE = "gone"
    UNKNOWN = "unknown"


class Explanation(BaseModel):
    """Why a file is there or not.

    Attributes:
        state: `lost` is a reference whose object is missing, `unreachable` one whose storage does not answer, and
            `unknown` a key that nothing is known of: it never was, or its records are kept no longer.
        reasons: a sentence each.
        details: its row; None when there is none.
        holders: who holds it by name, the first of them if they are very many.
    """

    file_key: str
    state: State
    reasons: list[str]
    details: BinaryDataDetails | None = None
    holders: list[Holding] = []


def absence_told_by(row: AnyRow) -> FileNotFound:
    """The error for a key whose reference is not there, from the newest record of its end or its beginning."""
    if row.status == OperationStatus.RUNNING:
        return StillStoring(
            f"The file {row.file_key!r} is being stored by engine instance {row.instance_id} since "
            f"{_moment(row.started_at)}; its reference is not there yet."
        )
    rule = (row.detail or {}).get("rule")
    how = _RULES.get(rule or "") or _ENDS.get(row.operation_type, "was deleted")
    ended = row.finished_at or row.updated_at
    return Gone(f"The reference {row.file_key!r} {how}, on {_moment(ended)} by engine instance {row.instance_id}.")


def reasons_to_live(details: BinaryDataDetails, holders: Sequence[Holding], holder_count: int) -> Iterator[str]:
    """Why a reference that is there has not gone, and when it may."""
    unnamed = details.ref_count - holder_count
    if details.pinned:
        yield "It is pinned: it never expires until it is unpinned."
    if details.ref_count == 0:
        yield f"Nothing refers to it since {_moment(details.last_access_at)} or before."
    if unnamed:
        yield f"{unnamed} of its {details.ref_count} references are without a name (the store is one)."
    for one in holders:
        yield _held(one)
    if holder_count > len(holders):
        yield f"{holder_count - len(holders)} more hold it by name."
    if details.expires_at is not None:
        yield f"It may be reaped from {_moment(details.expires_at)} on, if nothing changes until then."
    elif not details.pinned:
        yield "As things are, it never expires."


def _held(one: Holding) -> str:
    lease = f", with a lease until {_moment(one.lease_expires_at)}" if one.lease_expires_at else ""
    bound = f", bound to engine instance {one.instance_id}" if one.instance_id else ""
    return f"{one.holder!r} holds it since {_moment(one.acquired_at)}{lease}{bound}."


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
