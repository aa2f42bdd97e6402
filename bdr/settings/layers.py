"""Where settings are read from: arguments, the environment, a TOML file; each a tree of values and their origins."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bdr.errors import ConfigError

PREFIX = "BDR_"
DATABASE_URL = "DATABASE_URL"
DEFAULT_STORAGE = "main"
_CONFIG = "BDR_CONFIG"
_URL_FILE = "BDR_DATABASE_URL_FILE"
_URL = "BDR_DATABASE_URL"
_FOR_TESTS = "BDR_TEST_"
_FILE_NAME = "bdr.toml"

Location = tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where a value came from: `source` for people, `written` is the name as the user wrote it.

    `whole` marks an object that stands for all settings of its section.
    """

    source: str
    written: str
    whole: bool = False

    @property
    def is_environment(self) -> bool:
        return self.source.startswith("environment ")

    def spelled(self, location: Location) -> str:
        """The name of another setting, as it would be written in the same place."""
        return PREFIX + "__".join(location).upper() if self.is_environment else ".".join(location)


@dataclass
class Layer:
    """The settings that one place gives: a tree of tables, and the origin of every leaf in it."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, Origin] = field(default_factory=dict)

    def put(self, location: Location, value: Any, origin: Origin) -> None:
        """Set one leaf.

        Raises:
            ConfigError: it is set already, or a table above it or a leaf below it is.
        """
        for other, its_origin in self.origins.items():
            shorter = min(len(other), len(location))
            if other[:shorter] == location[:shorter]:
                raise ConfigError(f"{its_origin.written} and {origin.written} set the same thing: remove one of them")
        table = self.values
        for name in location[:-1]:
            table = table.setdefault(name, {})
        table[location[-1]] = value
        self.origins[location] = origin

    def fold_storage(self, default: str) -> None:
        """Move `storage`, which is short for the default one of `storages`, to its place there."""
        short = {location: origin for location, origin in self.origins.items() if location[0] == "storage"}
        for location, origin in short.items():
            value = _at(self.values, location)
            del self.origins[location]
            self.put(("storages", default, *location[1:]), value, origin)
        self.values.pop("storage", None)


def _at(table: Any, location: Location) -> Any:
    for name in location:
        table = table[name]
    return table


def _leaves(table: Mapping[str, Any], above: Location = ()) -> Iterator[tuple[Location, Any]]:
    for name, value in table.items():
        location = (*above, str(name))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, location)
        else:
            yield location, value


def read_layers(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Layer, ...]:
    """All layers, the strongest first, with `storage` folded into `storages`.

    Raises:
        ConfigError: a file cannot be read, or one layer contradicts itself.
    """
    layers = (_arguments(arguments), _environment(environ), _file(environ))
    chosen = (layer.values["default_storage"] for layer in layers if "default_storage" in layer.values)
    default = str(next(chosen, DEFAULT_STORAGE))
    for layer in layers:
        layer.fold_storage(default)
    return layers


def merged_origins(layers: tuple[Layer, ...]) -> dict[Location, Origin]:
    """The origin of every value that is not a default; a whole section given as an object hides what lies below."""
    origins: dict[Location, Origin] = {}
    for layer in reversed(layers):
        for location, origin in layer.origins.items():
            for hidden in [other for other in origins if other[: len(location)] == location]:
                del origins[hidden]
            origins[location] = origin
    return origins


def _arguments(arguments: Mapping[str, Any]) -> Layer:
    layer = Layer()
    given = {name: value for name, value in arguments.items() if value is not None}
    for location, value in _leaves(given):
        layer.put(location, value, Origin("argument", ".".join(location), whole=isinstance(value, BaseModel)))
    return layer


def _environment(environ: Mapping[str, str]) -> Layer:
    layer = Layer()
    for name, text in sorted(environ.items()):
        if _is_setting(name) and text:
            location = tuple(name.removeprefix(PREFIX).lower().split("__"))
            layer.put(location, text, Origin(f"environment {name}", name))
    _put_database_url(layer, environ)
    return layer


def _is_setting(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(_FOR_TESTS) and name not in {_CONFIG, _URL_FILE}


def _put_database_url(layer: Layer, environ: Mapping[str, str]) -> None:
    if environ.get(_URL_FILE):
        url = _read_secret(Path(environ[_URL_FILE]))
        layer.put(("database_url",), url, Origin(f"environment {_URL_FILE}", _URL_FILE))
    elif environ.get(DATABASE_URL) and "database_url" not in layer.values:
        layer.put(("database_url",), environ[DATABASE_URL], Origin(f"environment {DATABASE_URL}", DATABASE_URL))


def _read_secret(path: Path) -> str:
    text = _read(path, f"the file that {_URL_FILE} names").strip()
    if not text:
        raise ConfigError(f"{_URL_FILE}: {path} is empty: it must hold the database's URL")
    return text


def _read(path: Path, what: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}, {what}, cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}, {what}, is not UTF-8 text") from error


def _file(environ: Mapping[str, str]) -> Layer:
    layer = Layer()
    path, what = _find_file(environ)
    if path is None:
        return layer
    try:
        values = tomllib.loads(_read(path, what))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for location, value in _leaves(values):
        layer.put(location, value, Origin(f"file {path}", f"{'.'.join(location)} in {path}"))
    return layer


def _find_file(environ: Mapping[str, str]) -> tuple[Path | None, str]:
    """The file to read, and what it is; only a file that was named must be there."""
    if environ.get(_CONFIG):
        return Path(environ[_CONFIG]), f"the file that {_CONFIG} names"
    # The os.path functions say no where pathlib raises: without a home, or in a folder of somebody else.
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - see above
    places = (Path.cwd() / _FILE_NAME, Path(home, "bdr", _FILE_NAME))
    found = next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113 - see above
    return found, "the configuration file"
