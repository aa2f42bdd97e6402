"""What one setting can be: a length of time, a number of bytes; and how they are written back for people."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

# The catalog allows intervals up to '1000 years', and PostgreSQL compares a year as 360 days.
LONGEST = timedelta(days=360_000)
SHORTEST = timedelta(milliseconds=1)
NEVER = "never"

_DURATION_FORMS = 'write it like "90s", "5 min", "1h30m", "7d", "250ms" or "PT1H"; a bare number is seconds'
_SIZE_FORMS = 'write it like "100MiB", "10 MB" or as a number of bytes'
_SECONDS: dict[str, Decimal | int] = {"ms": Decimal("0.001"), "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION_UNITS = {
    "ms": ("ms", "msec", "msecs", "millisecond", "milliseconds"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "m": ("m", "min", "mins", "minute", "minutes"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "d": ("d", "day", "days"),
    "w": ("w", "week", "weeks"),
}
_UNIT_SECONDS = {name: _SECONDS[unit] for unit, names in _DURATION_UNITS.items() for name in names}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*")
_ISO_DURATION = re.compile(r"P(?=[0-9T])[0-9.YMWD]*(T[0-9.HMS]+)?", re.IGNORECASE)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_BYTES: dict[str, int] = {"": 1, "b": 1} | {
    prefix.lower() + suffix: base**power
    for suffix, base in (("ib", 1_024), ("b", 1_000))
    for power, prefix in enumerate("KMGT", start=1)
}
_ISO: TypeAdapter[timedelta] = TypeAdapter(timedelta)
_SHOWN_CHARACTERS = 40


def shown_input(value: object) -> str:
    """`value` as written, short enough for an error's sentence."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def parse_duration(value: object) -> timedelta:
    """A length of time between 0 and 1000 years, from any of the forms people write.

    Raises:
        ValueError: it is none of them, or out of range; the sentence names the good forms.
    """
    seconds = _seconds(value)
    # False for NaN too, which timedelta would refuse with a sentence of its own.
    if not 0 <= seconds <= LONGEST.total_seconds():
        raise ValueError(f"{shown_input(value)} is out of range: a length of time is from 0 to 1000 years")
    return value if isinstance(value, timedelta) else timedelta(microseconds=round(seconds * 1_000_000))


def _seconds(value: object) -> Decimal | float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    seconds = _seconds_of_text(value.strip()) if isinstance(value, str) else None
    if seconds is None:
        raise ValueError(f"{shown_input(value)} is not a length of time: {_DURATION_FORMS}")
    return seconds


def _seconds_of_text(text: str) -> Decimal | float | None:
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    if _ISO_DURATION.fullmatch(text):
        return _seconds_of_iso(text)
    parts = _DURATION_PART.findall(text.lower())
    if not parts or _DURATION_PART.sub("", text.lower()) or any(unit not in _UNIT_SECONDS for _, unit in parts):
        return None
    return sum(Decimal(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def _seconds_of_iso(text: str) -> float | None:
    try:
        return _ISO.validate_python(text.upper()).total_seconds()
    except ValidationError:
        return None


def _parse_positive(value: object) -> timedelta:
    duration = parse_duration(value)
    if duration < SHORTEST:
        raise ValueError(f"{shown_input(value)} is too short: it must be at least 1 ms")
    return duration


def _parse_retention(value: object) -> timedelta | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in {NEVER, "none", "null"}):
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f'{error}; or "{NEVER}"') from None


def parse_size(value: object) -> int:
    """A number of bytes from an int or text with a unit; KB, MB, … are powers of 1000, KiB, MiB, … of 1024.

    Raises:
        ValueError: it is neither, or negative; the sentence names the good forms.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or match[2] not in _BYTES:
        raise ValueError(f"{shown_input(value)} is not a size: {_SIZE_FORMS}")
    return int(Decimal(match[1]) * _BYTES[match[2]])


def format_duration(value: timedelta) -> str:
    """`value` in the form `parse_duration` reads, such as "1h30m" or "250ms"; milliseconds are the finest shown."""
    left = round(value.total_seconds() * 1_000)
    parts = []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, left = divmod(left, milliseconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_retention(value: timedelta | None) -> str:
    """`value` in the form that a retention is written in; None is "never"."""
    return NEVER if value is None else format_duration(value)


def format_size(value: int) -> str:
    """`value` in the form `parse_size` reads: in the largest binary unit that divides it."""
    for unit, factor in (("TiB", 1_024**4), ("GiB", 1_024**3), ("MiB", 1_024**2), ("KiB", 1_024)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


@dataclass(frozen=True)
class Shown:
    """Marks a type with the way its values are written for people."""

    write: Callable[[Any], str]


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Shown(format_duration)]
"""A length of time from 0 to 1000 years."""

PositiveDuration = Annotated[timedelta, BeforeValidator(_parse_positive), Shown(format_duration)]
"""A length of time from 1 ms to 1000 years."""

Retention = Annotated[timedelta | None, BeforeValidator(_parse_retention), Shown(format_retention)]
"""A length of time, or None for "never"."""

Size = Annotated[int, BeforeValidator(parse_size), Field(lt=2**63), Shown(format_size)]
"""A number of bytes."""
