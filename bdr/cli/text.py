"""How values are written for people. Nothing from outside gets to a terminal as markup, control or direction."""

import unicodedata
from datetime import UTC, datetime, timedelta

# Control, format (direction marks, zero-width characters), half a character, line and paragraph separators.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
NOTHING = "-"
_STEP = 1024


def shown(text: str) -> str:
    r"""The text on one line; what could steer a terminal or mislead a reader is written as an escape, as `\x1b` is."""
    return "".join(_escape(one) if unicodedata.category(one) in _STEERING else one for one in text)


def size(count: float) -> str:
    """A number of bytes, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < _STEP or unit == "TiB":
            break
        count /= _STEP
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def several(count: int, what: str) -> str:
    """A number of things, such as `1 object` or `2 objects`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def moment(at: datetime | None) -> str:
    """A time in UTC to the second; `-` for none."""
    return NOTHING if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def length(time: timedelta | None) -> str:
    """A length of time as `0.4 s`, `1:05` or `26:10:00`; `-` for none."""
    if time is None:
        return NOTHING
    if time < timedelta(seconds=10):
        return f"{time.total_seconds():.1f} s"
    minutes, seconds = divmod(round(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
