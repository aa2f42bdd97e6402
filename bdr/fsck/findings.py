"""What a check can find, and what it comes to."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# The 256 folders that objects lie in, and what lies beside them.
SHARDS = tuple(f"{number:02x}" for number in range(256))
REST = "rest"
PARTS = (*SHARDS, REST)
# What is wrong within the catalog, whatever the storages hold.
CATALOG = "catalog"
COUNTS = "counts"


class FindingKind(StrEnum):
    """What is wrong.

    Attributes:
        MISSING: a live blob whose object is not there.
        TRUNCATED: a live blob whose object has another size.
        CORRUPT: a live blob whose object has the right size and other bytes; only found when checksums are compared.
        ORPHAN: an object that no blob owns.
        UNREFERENCED: a live blob that no reference needs.
        COUNT: a reference whose numbers contradict what they count.
    """

    MISSING = "missing"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    ORPHAN = "orphan"
    UNREFERENCED = "unreferenced"
    COUNT = "count"


class Line(BaseModel):
    """A line of a plan; `line` says which."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(Line):
    """One thing that is wrong.

    Attributes:
        storage: where; "catalog" for a count.
        path: of the object; of an orphan as the storage has it, which may be a folder's, with a "/" at its end.
        blob_id: the blob that is wrong; None for an orphan.
        size: bytes as the catalog has them; for an orphan as the storage has them.
        found_size: bytes of an object that has not as many as it should.
        references: how many references the blob has.
        file_keys: some of them.
        why: where the kind does not say it all.
    """

    line: Literal["finding"] = "finding"
    kind: FindingKind
    storage: str
    path: str | None = None
    blob_id: uuid.UUID | None = None
    size: int | None = None
    found_size: int | None = None
    references: int | None = None
    file_keys: list[str] = Field(default_factory=list)
    why: str | None = None


class Place(Line):
    """Where a storage was when it was checked; no secret is in it."""

    storage_type: str
    location: str
    fingerprint: str


class Examined(BaseModel):
    """How much was looked at.

    Attributes:
        blobs: live blobs; references, where counts were looked at.
        objects: objects that the storage listed.
        bytes: of the blobs.
    """

    blobs: int = 0
    objects: int = 0
    bytes: int = 0

    def add(self, other: "Examined") -> None:
        """Count what `other` counted as well."""
        self.blobs += other.blobs
        self.objects += other.objects
        self.bytes += other.bytes


class Unknown(Line):
    """What could not be told of some parts of a storage, and why.

    Attributes:
        parts: folders of objects by name, "rest" for what lies beside them, "counts" for the catalog's own.
    """

    line: Literal["unknown"] = "unknown"
    storage: str
    parts: list[str]
    reason: str


class FsckReport(BaseModel):
    """What a plan says.

    Attributes:
        finished: whether the check came to its end; otherwise it can be resumed.
        findings: how many, by storage and kind; "catalog" has the counts.
        bytes_found: the sizes of what is wrong, together.
        examined: how much, by storage.
        unknown: what could not be told. Parts that were not examined at all are looked at when the plan is resumed.
    """

    catalog_id: uuid.UUID
    begun_at: datetime
    checksum: bool
    places: dict[str, Place]
    finished: bool = False
    findings: dict[str, dict[FindingKind, int]] = Field(default_factory=dict)
    bytes_found: int = 0
    examined: dict[str, Examined] = Field(default_factory=dict)
    unknown: list[Unknown] = Field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything was looked at and nothing is wrong."""
        return self.finished and not self.findings and not self.unknown

    def add(self, storage: str, examined: Examined, found: Mapping[FindingKind, int], size: int) -> None:
        """Take in a part of a storage."""
        self.examined.setdefault(storage, Examined()).add(examined)
        self.bytes_found += size
        for kind, n in found.items():
            kinds = self.findings.setdefault(storage, {})
            kinds[kind] = kinds.get(kind, 0) + n

    def count(self, kind: FindingKind | None = None) -> int:
        """Findings in all storages, of one kind or of any."""
        return sum(n for kinds in self.findings.values() for found, n in kinds.items() if kind in (None, found))
