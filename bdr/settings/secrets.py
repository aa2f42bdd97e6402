"""What must never be shown, and how what remains is shown."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "**********"
# Rather one name too many than one too few.
_SECRET_NAME = re.compile(
    r"secret|pass|pwd|token|key|credential|sas|connection_string|sig|auth|jwt|delegation", re.IGNORECASE
)
# Up to the last "@": a password may hold any character, and hiding a host too many harms nobody.
_USERINFO = re.compile(r"://.*@", re.DOTALL)
# Of a URL's query or fragment, or of a connection string such as libpq's, where blanks or semicolons part the pairs.
_SECRET_PAIR = re.compile(
    rf"((?:^|[?&;#\s])[^=&;#\s]*(?:{_SECRET_NAME.pattern})[^=&;#\s]*\s*=\s*)('[^']*'|[^&;#\s]*)", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """`text` with the user and password of a URL taken out, and the values of secret-looking names masked."""
    return _SECRET_PAIR.sub(rf"\g<1>{MASK}", _USERINFO.sub("://", text))


def shown_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A storage's options as they may be printed, logged and dumped."""
    return {name: MASK if _SECRET_NAME.search(name) else _shown(value) for name, value in options.items()}


def _shown(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value
