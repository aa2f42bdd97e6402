"""The reference that nodes pass around instead of bytes, and what is known about a file when it is stored."""

import json
import re
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bdr.mime import normalise_mime

MAX_NAME_LENGTH = 1024
MAX_DIRECTORY_LENGTH = 4096
MAX_LABELS_SIZE = 16_384
MAX_FILE_SIZE = 2**63 - 1
# 0001-01-01 to 9999-12-31 UTC: what every date type on the way, from Python to PostgreSQL, can hold. But for the very
# first second: asyncpg takes that for -infinity.
_FIRST_SECOND = -62_135_596_799
_LAST_SECOND = 253_402_300_799

_DRIVE = re.compile(r"[A-Za-z]:")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# An escaped NUL, but not the six characters of it behind an escaped backslash.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# "officedocument" and "opendocument" are in the names of all office types, drawings included: they say nothing.
_WORD = re.compile(r"word|opendocument\.text|(?<!office)(?<!open)document|^application/rtf$")
_HTML = frozenset({"text/html", "application/xhtml+xml"})


class BinaryFileKind(StrEnum):
    """What a file is, as far as a user interface cares; hetumind knows exactly these ten."""

    TEXT = "text"
    JSON = "json"
    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    PDF = "pdf"
    HTML = "html"
    EXCEL = "excel"
    WORD = "word"
    PPT = "ppt"

    @classmethod
    def of_mime(cls, mime: str) -> Self | None:
        """The kind of files of this MIME type, parameters allowed; None when it is none of the ten."""
        essence = mime.partition(";")[0].strip().lower()
        if essence in _HTML:
            return cls("html")
        if essence == "application/json" or essence.endswith("+json"):
            return cls("json")
        family = essence.partition("/")[0]
        if family in {"text", "image", "video", "audio"}:
            return cls(family)
        return cls("pdf") if essence == "application/pdf" else cls._of_office(essence)

    @classmethod
    def _of_office(cls, essence: str) -> Self | None:
        if "presentation" in essence or "powerpoint" in essence:
            return cls("ppt")
        if "sheet" in essence or "excel" in essence:
            return cls("excel")
        return cls("word") if _WORD.search(essence) else None


class NameParts(NamedTuple):
    """A file name taken apart.

    Attributes:
        base: the last part; empty when the name is only a directory, such as `/` or `..`.
        extension: what follows its last dot, as it is written; None when there is none, as in `.bashrc` and `a.`.
        directory: what stands in front of it, without the separator; None when nothing does.
    """

    base: str
    extension: str | None
    directory: str | None


def split_name(file_name: str) -> NameParts:
    r"""Base name, extension and directory of a name, with `/`, `\` or a drive letter, on every system the same.

    Nothing is resolved or replaced: `../a.gz` lies in `..`. Separators at the end count as absent.

    Raises:
        ValueError: the name is longer than 1024 characters, or has a NUL or a lone surrogate in it.
    """
    name = _checked_name(file_name)
    trimmed = name.rstrip("/\\")
    start = max(trimmed.rfind("/"), trimmed.rfind("\\")) + 1
    drive = _DRIVE.match(trimmed)
    if not start and drive:
        start = drive.end()
    base = trimmed[start:]
    if base in {"", ".", ".."}:
        return NameParts("", None, name or None)
    return NameParts(base, _extension(base), _directory(trimmed[:start]))


def _extension(base: str) -> str | None:
    stem, _, extension = base.rpartition(".")
    return extension if extension and stem.strip(".") else None


def _directory(front: str) -> str | None:
    return front.rstrip("/\\") or front[:1] or None


def _checked_text(text: str, limit: int, what: str) -> str:
    if len(text) > limit:
        raise ValueError(f"{what} has {len(text):,} characters; at most {limit:,} are allowed")
    if "\x00" in text:
        raise ValueError(f"{what} has a NUL character at position {text.index(chr(0))}, which PostgreSQL cannot hold")
    if found := _SURROGATE.search(text):
        raise ValueError(
            f"{what} has half a character (a lone surrogate) at position {found.start()}; it is no Unicode"
        )
    return text


def _checked_name(name: str) -> str:
    return _checked_text(name, MAX_NAME_LENGTH, "a file name")


def _checked_extension(extension: str) -> str:
    return _checked_text(extension, MAX_NAME_LENGTH, "a file extension")


def _checked_directory(directory: str) -> str:
    return _checked_text(directory, MAX_DIRECTORY_LENGTH, "a directory")


def _checked_labels(labels: dict[str, Any]) -> dict[str, Any]:
    """The labels as they come back from the database: a copy, made of JSON's own types."""
    try:
        plain = json.loads(json.dumps(labels, ensure_ascii=False, allow_nan=False), parse_float=_as_stored)
        encoded = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        size = len(encoded.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"labels must be what JSON can hold: {error}") from error
    if size > MAX_LABELS_SIZE:
        raise ValueError(f"labels are {size:,} bytes as JSON; at most {MAX_LABELS_SIZE:,} are allowed")
    if _ESCAPED_NUL.search(encoded):
        raise ValueError("labels have a NUL character in a string, which PostgreSQL cannot hold")
    return dict(plain)


def _as_stored(number: str) -> float | int:
    """A number as PostgreSQL gives it back: it writes no exponents, so large ones are whole, and no minus zero."""
    value = float(number)
    return int(value) if "e+" in number else value + 0.0


FileSize = Annotated[int, Field(ge=0, le=MAX_FILE_SIZE)]
FileName = Annotated[str, AfterValidator(_checked_name)]
FileExtension = Annotated[str, AfterValidator(_checked_extension)]
Directory = Annotated[str, AfterValidator(_checked_directory)]
MimeType = Annotated[str, AfterValidator(normalise_mime)]
Namespace = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
Labels = Annotated[dict[str, Any], AfterValidator(_checked_labels)]


class BinaryDataReference(BaseModel):
    """A light-weight stand-in for a file's bytes.

    Its JSON has exactly these seven fields, in this order, absent values as null; unknown fields are ignored when it
    is read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    file_key: str
    mime_kind: str
    file_size: FileSize
    file_name: str | None = None
    file_kind: BinaryFileKind | None = None
    file_extension: str | None = None
    directory: str | None = None


class BinaryDataMetadata(BaseModel):
    """What the caller knows about a file; everything is optional, the bytes and the name tell the rest.

    Wrong values raise `pydantic.ValidationError`, which is a ValueError.

    Attributes:
        file_name: the file's name, a path in front of it allowed; only ever shown, never part of an object's path. Up
            to 1024 characters of any kind but NUL.
        mime_type: found from the bytes when absent; kept as `normalise_mime` writes it.
        file_size: bytes; when given, a different size is an error and nothing is stored.
        last_modified: seconds since 1970, UTC, within the years 1 to 9999.
        namespace: what audits group by first; the configured default when absent. ASCII letters and digits, and after
            the first of them also `. _ : / -`, up to 128 characters.
        labels: what else audits group by, such as workflow, execution, node and port: a JSON object of at most 16 KiB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_name: FileName | None = None
    mime_type: MimeType | None = None
    file_size: FileSize | None = None
    last_modified: Annotated[int, Field(ge=_FIRST_SECOND, le=_LAST_SECOND)] | None = None
    file_kind: BinaryFileKind | None = None
    file_extension: FileExtension | None = None
    directory: Directory | None = None
    namespace: Namespace | None = None
    labels: Labels = Field(default_factory=dict)
