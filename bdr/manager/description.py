"""From what the caller says and the bytes show to the row of a reference, and back."""

import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from bdr.catalog.base import AnyRow
from bdr.mime import guess_mime
from bdr.reference import BinaryDataMetadata, BinaryDataReference, BinaryFileKind, split_name
from bdr.settings import Settings
from bdr.storage.protocol import StoredObject

# Enough of a file's beginning to tell its type.
HEAD_SIZE = 8192


class BinaryDataDetails(BaseModel):
    """All that the catalog knows of a reference.

    Attributes:
        checksum: SHA-256 of the bytes, hex.
        expires_at: from then on a reaper may delete it; None is never.
    """

    model_config = ConfigDict(frozen=True)

    reference: BinaryDataReference
    namespace: str
    labels: dict[str, Any]
    last_modified: datetime | None
    ref_count: int
    pinned: bool
    created_at: datetime
    last_access_at: datetime
    expires_at: datetime | None
    storage_name: str
    object_path: str
    blob_id: uuid.UUID
    checksum: str


def describe(metadata: BinaryDataMetadata, namespace: str) -> dict[str, Any]:
    """The columns that describe a file, but for its type; `namespace` is the default one."""
    name = split_name(metadata.file_name or "")
    modified = metadata.last_modified
    return {
        "namespace": metadata.namespace or namespace,
        "file_name": metadata.file_name,
        "file_extension": metadata.file_extension or name.extension,
        "directory": metadata.directory or name.directory,
        "last_modified": None if modified is None else datetime.fromtimestamp(modified, UTC),
        "labels": metadata.labels,
    }


def type_of(metadata: BinaryDataMetadata, head: bytes, *, complete: bool) -> dict[str, Any]:
    """The columns of a file's type; `head` is its first 8 KiB, or all of it when `complete`."""
    mime = metadata.mime_type or guess_mime(head, metadata.file_name, complete=complete)
    return {"mime_kind": mime, "file_kind": metadata.file_kind or BinaryFileKind.of_mime(mime)}


def reference_row(stored: StoredObject, described: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The row of a new reference, but for its keys; its retention is the storing engine's, whatever others use."""
    return described | {
        "file_size": stored.size,
        "zero_ref_retention": settings.lifecycle.zero_ref_retention,
        "max_retention": settings.lifecycle.max_retention,
        "held_at_max_retention": settings.lifecycle.held_at_max_retention,
    }


def as_reference(row: Any) -> BinaryDataReference:
    """The reference that a row, or the mapping of one, describes."""
    fields = row if isinstance(row, dict) else row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return BinaryDataReference(**{name: fields[name] for name in BinaryDataReference.model_fields})


def as_metadata(row: AnyRow) -> BinaryDataMetadata:
    """What was said of the file when it was stored, completed by what was found."""
    return BinaryDataMetadata(
        file_name=row.file_name,
        mime_type=row.mime_kind,
        file_size=row.file_size,
        last_modified=None if row.last_modified is None else int(row.last_modified.timestamp()),
        file_kind=row.file_kind,
        file_extension=row.file_extension,
        directory=row.directory,
        namespace=row.namespace,
        labels=row.labels,
    )


def as_details(row: AnyRow) -> BinaryDataDetails:
    """All columns of a row, with its reference as nodes see it."""
    fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    own = {name: fields[name] for name in BinaryDataDetails.model_fields if name in fields}
    return BinaryDataDetails(**own | {"reference": as_reference(row), "checksum": row.checksum.hex()})
