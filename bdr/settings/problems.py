"""From pydantic's findings to a ConfigError: one line a problem, named as the user wrote it, no value in it."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bdr.errors import ConfigError
from bdr.settings.layers import DEFAULT_STORAGE, Location, Origin

Origins = Mapping[Location, Origin]

_UNKNOWN = "extra_forbidden"
_ENVIRONMENT_ONLY = ("config", "database_url_file")


def error_of_section(error: ValidationError, section: type[BaseModel]) -> ConfigError:
    """The error of a section that was built by hand."""
    lines = []
    for problem in error.errors(include_input=False):
        name = ".".join((section.__name__, *map(str, problem["loc"])))
        unknown = problem["type"] == _UNKNOWN
        what = _not_among(str(problem["loc"][-1]), section.model_fields) if unknown else _sentence(problem)
        lines.append(f"{name}: {what}")
    return ConfigError("\n".join(lines))


def error_of_settings(error: ValidationError, settings: type[BaseModel], origins: Origins) -> ConfigError:
    """The error of the settings as a whole."""
    lines: list[str] = []
    for problem in error.errors(include_input=False):
        location = tuple(map(str, problem["loc"]))
        if problem["type"] == _UNKNOWN:
            lines += _unknown_settings(location, settings, origins)
        else:
            name = _written(location, settings, origins)
            lines.append(f"{name}: {_sentence(problem)}" if name else _sentence(problem))
    return ConfigError("\n".join(lines))


def _sentence(problem: ErrorDetails) -> str:
    raised = problem.get("ctx", {}).get("error")
    if problem["type"] == "missing":
        return "is missing"
    return str(raised) if raised is not None else problem["msg"]


def _written(location: Location, settings: type[BaseModel], origins: Origins) -> str:
    if _table_at(settings, location) is not None:
        return ".".join(location)
    found = [origin.written for at, origin in origins.items() if at[: len(location)] == location]
    return found[0] if len(found) == 1 else ".".join(location)


def _unknown_settings(location: Location, settings: type[BaseModel], origins: Origins) -> Iterator[str]:
    """A line for everything that was set at or below the unknown name."""
    table = _table_at(settings, location[:-1])
    for at, origin in origins.items():
        if at[: len(location)] != location:
            continue
        if len(location) == 1 or table is None:
            yield f"{origin.written}: {_no_setting(at, settings, origin)}"
        else:
            names = [name.upper() if origin.is_environment else name for name in table.model_fields]
            wrong = location[-1].upper() if origin.is_environment else location[-1]
            yield f"{origin.written}: {_not_among(wrong, names)}"


def _not_among(wrong: str, names: Iterable[str]) -> str:
    known = list(names)
    near = get_close_matches(wrong, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return f"there is no setting `{wrong}`; {hint}"


def _no_setting(at: Location, settings: type[BaseModel], origin: Origin) -> str:
    known = {".".join(location): location for location in _names(settings)}
    if origin.is_environment:
        known |= {name: (name,) for name in _ENVIRONMENT_ONLY}
    near = get_close_matches(".".join(at).lower(), known, n=1)
    if near:
        return f"there is no such setting; did you mean {origin.spelled(known[near[0]])}?"
    tops = dict.fromkeys(origin.spelled(location[:1]) for location in known.values())
    return f"there is no such setting; all begin with one of {', '.join(tops)}"


def _names(model: type[BaseModel], above: Location = ()) -> Iterator[Location]:
    """Every name that can be set; the named storages stand for themselves as the default one, and as `storage`."""
    for name in model.model_fields:
        table = _table_at(model, (name, DEFAULT_STORAGE)) if name == "storages" else _table_at(model, (name,))
        if table is None:
            yield (*above, name)
        elif name == "storages":
            yield from _names(table, ("storage",))
            yield from _names(table, (name, DEFAULT_STORAGE))
        else:
            yield from _names(table, (name,))


def _table_at(kind: Any, location: Location) -> type[BaseModel] | None:
    """The model of the section at `location`; None where there is a single value, or nothing."""
    if get_origin(kind) is dict and location:
        return _table_at(get_args(kind)[1], location[1:])
    if not isinstance(kind, type) or not issubclass(kind, BaseModel):
        return None
    if not location:
        return kind
    field = kind.model_fields.get(location[0])
    return None if field is None else _table_at(field.annotation, location[1:])
