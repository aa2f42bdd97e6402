"""Every setting with its value and where that came from, for people."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bdr.settings.layers import Location
from bdr.settings.load import Settings
from bdr.settings.secrets import MASK, shown_options, without_secrets
from bdr.settings.values import Shown

UNSET = "unset"


@dataclass(frozen=True)
class SettingLine:
    """One setting: its dotted name, its value as it would be written, secrets masked, and where it came from."""

    name: str
    value: str
    source: str


def describe_settings(settings: Settings) -> list[SettingLine]:
    """A line for every setting, in the order of the documentation; nothing secret is in it."""
    return [
        SettingLine(".".join(location), value, settings.source_of(*location)) for location, value in _lines(settings)
    ]


def _lines(model: BaseModel, above: Location = ()) -> Iterator[tuple[Location, str]]:
    for name, field in type(model).model_fields.items():
        location, value = (*above, name), getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _lines(value, location)
        elif isinstance(value, Mapping):
            yield from _mapping(value, location)
        else:
            yield location, _written(value, field)


def _mapping(table: Mapping[str, Any], location: Location) -> Iterator[tuple[Location, str]]:
    if not table:
        yield location, UNSET
    for name, value in shown_options(table).items():
        if isinstance(value, BaseModel):
            yield from _lines(value, (*location, name))
        else:
            yield (*location, name), _plain(value)


def _written(value: Any, field: FieldInfo) -> str:
    shown = next((mark for mark in field.metadata if isinstance(mark, Shown)), None)
    return shown.write(value) if shown else _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return UNSET
    if isinstance(value, SecretStr):
        return _shown_url(value.get_secret_value())
    return str(value).lower() if isinstance(value, bool) else without_secrets(str(value))


def _shown_url(text: str) -> str:
    return without_secrets(text) if "://" in text else MASK
