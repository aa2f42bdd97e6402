"""The reference that nodes pass around instead of bytes, and what is known about a file when it is stored."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


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


class BinaryDataReference(BaseModel):
    """A light-weight stand-in for a file's bytes.

    Its JSON has exactly these seven fields, in this order, absent values as null; unknown fields are ignored when it
    is read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    file_key: str
    mime_kind: str
    file_size: Annotated[int, Field(ge=0)]
    file_name: str | None = None
    file_kind: BinaryFileKind | None = None
    file_extension: str | None = None
    directory: str | None = None


class BinaryDataMetadata(BaseModel):
    """What the caller knows about a file; everything is optional, the bytes tell the rest.

    Attributes:
        file_name: the file's name, a path in front of it allowed; only ever shown, never part of an object's path.
        mime_type: found from the bytes when absent.
        file_size: bytes; when given, a different size is an error and nothing is stored.
        last_modified: seconds since 1970, UTC.
        namespace: what audits group by first; the configured default when absent.
        labels: what else audits group by, such as workflow, execution, node and port.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_name: str | None = None
    mime_type: str | None = None
    file_size: Annotated[int, Field(ge=0)] | None = None
    last_modified: int | None = None
    file_kind: BinaryFileKind | None = None
    file_extension: str | None = None
    directory: str | None = None
    namespace: str | None = None
    labels: dict[str, Any] = Field(default_factory=dict)
