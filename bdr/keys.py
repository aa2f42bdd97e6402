"""File keys and object paths: made here, from random and checked parts only."""

import base64
import re
import uuid

from uuid_utils.compat import uuid7

MAX_KEY_LENGTH = 128
_KEY = re.compile(r"[0-9a-v]{26}(\.[a-z0-9]{1,16})?")
_EXTENSION = re.compile(r"[a-z0-9]{1,16}")


def new_id() -> uuid.UUID:
    """A UUIDv7: unique, and later ones sort after earlier ones."""
    return uuid7()


def encode(identifier: uuid.UUID) -> str:
    """26 lower-case characters that sort as the UUID does and are safe in URLs and file names."""
    return base64.b32hexencode(identifier.bytes).decode("ascii").rstrip("=").lower()


def new_file_key(extension: str | None = None) -> str:
    """A new file key; the extension is kept only if it is plain ASCII letters and digits, at most 16."""
    suffix = (extension or "").lower()
    return encode(new_id()) + (f".{suffix}" if _EXTENSION.fullmatch(suffix) else "")


def is_file_key(text: str) -> bool:
    """Whether `text` could have come from `new_file_key`; anything else is no key of ours."""
    return _KEY.fullmatch(text) is not None


def object_path(blob_id: uuid.UUID) -> str:
    """Where a blob's object lies in its storage: 256 folders, chosen by the random end of the id."""
    return f"{blob_id.hex[-2:]}/{encode(blob_id)}"
