"""File keys and object paths: made here, from random and checked parts only."""

import re
import uuid
from itertools import product

from uuid_utils.compat import uuid7

MAX_KEY_LENGTH = 128
# Ten bits at once.
_PAIRS = ["".join(pair) for pair in product("0123456789abcdefghijklmnopqrstuv", repeat=2)]
_KEY = re.compile(r"[0-9a-v]{26}(\.[a-z0-9]{1,16})?")
_EXTENSION = re.compile(r"[a-z0-9]{1,16}")


def new_id() -> uuid.UUID:
    """A UUIDv7: unique, and later ones sort after earlier ones."""
    return uuid7()


def encode(identifier: uuid.UUID) -> str:
    """Base32hex (RFC 4648), 26 lower-case characters: they sort as the UUID does, and are safe in URLs and names."""
    bits = identifier.int << 2
    return "".join([_PAIRS[bits >> shift & 1023] for shift in range(120, -1, -10)])


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
