"""The settings as a whole, and reading them."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from bdr.settings.layers import DATABASE_URL, DEFAULT_STORAGE, Location, Origin, merged_origins, read_layers
from bdr.settings.problems import error_of_settings
from bdr.settings.sections import (
    AccessConfig,
    BinaryStorageConfig,
    CacheConfig,
    DatabaseConfig,
    FsckConfig,
    InstanceConfig,
    LifecycleCleanupConfig,
    OperationsConfig,
    ReaperConfig,
    UploadConfig,
)
from bdr.settings.values import shown_input

logger = logging.getLogger(__name__)

_STORAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
# Where a service keeps its state; taken when the user has no home.
_STATE_DIR = Path("/var/lib")


def _storage_name(name: str) -> str:
    if not _STORAGE_NAME.fullmatch(name):
        raise ValueError(
            f"{shown_input(name)} cannot name a storage: at most 63 lower-case letters, digits, `_` and `-`, "
            "the first a letter or digit"
        )
    return name


def _namespace(name: str) -> str:
    if not _NAMESPACE.fullmatch(name):
        raise ValueError(
            f"{shown_input(name)} cannot be a namespace: at most 128 ASCII letters, digits and `._:/-`, "
            "the first a letter or digit"
        )
    return name


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


def _default_data_dir() -> Path:
    try:
        home = Path.home()
    except RuntimeError:
        return _STATE_DIR / "bdr"
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    if named.is_absolute():
        return named / "bdr"
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share") / "bdr"


class _Unprinted(dict[str, Any]):
    def __repr__(self) -> str:
        return "<not shown>"


class _LayerSource(InitSettingsSource):
    # PYDANTIC_SETTINGS_DEBUG logs what every source gives, secrets and all.
    def __call__(self) -> dict[str, Any]:
        return _Unprinted(super().__call__())


StorageName = Annotated[str, AfterValidator(_storage_name)]


class Settings(BaseSettings):
    """All settings. Building it reads the environment and bdr.toml; `arguments` win over both.

    An argument that is an object, such as a `ReaperConfig`, replaces its whole section; one that is a dictionary only
    what it names. `storage` is short for the default one of `storages`.

    Attributes:
        database_url: of PostgreSQL, as libpq writes it; None means the embedded one.
        storages: by name; empty means the embedded default, a folder under `data_dir`.
        default_storage: the storage that new data goes to.
        namespace: that of data stored without one.
        data_dir: the home of the embedded database and storage.
        migrate_on_start: None migrates only the embedded database.

    Raises:
        ConfigError: a line for each setting that is wrong, unknown or unreadable, by the name it was written with.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, case_sensitive=True)

    database_url: Annotated[SecretStr, Field(min_length=1)] | None = None
    storages: dict[StorageName, BinaryStorageConfig] = Field(default_factory=dict)
    default_storage: StorageName = DEFAULT_STORAGE
    namespace: Annotated[str, AfterValidator(_namespace)] = "default"
    data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(default_factory=_default_data_dir)
    migrate_on_start: bool | None = None
    lifecycle: LifecycleCleanupConfig = LifecycleCleanupConfig()
    reaper: ReaperConfig = ReaperConfig()
    upload: UploadConfig = UploadConfig()
    cache: CacheConfig = CacheConfig()
    database: DatabaseConfig = DatabaseConfig()
    instance: InstanceConfig = Field(default_factory=InstanceConfig)
    operations: OperationsConfig = OperationsConfig()
    access: AccessConfig = AccessConfig()
    fsck: FsckConfig = FsckConfig()

    _origins: dict[Location, Origin] = PrivateAttr(default_factory=dict)

    def __init__(self, **arguments: Any) -> None:
        layers = read_layers(arguments, os.environ)
        origins = merged_origins(layers)
        sources = tuple(_LayerSource(type(self), layer.values) for layer in layers)
        try:
            super().__init__(_build_sources=(sources, {}))
        except ValidationError as error:
            raise error_of_settings(error, type(self), origins) from None
        self._origins = origins

    @model_validator(mode="after")
    def _default_storage_is_there(self) -> Self:
        if self.storages and self.default_storage not in self.storages:
            raise ValueError(
                f"default_storage is `{self.default_storage}`, but the storages are {', '.join(sorted(self.storages))}:"
                " name one of them, or configure it too"
            )
        return self

    @property
    def storage(self) -> BinaryStorageConfig | None:
        """The default storage; None means the embedded default."""
        return self.storages.get(self.default_storage)

    def source_of(self, *location: str) -> str:
        """Where the value at `location` came from, such as `source_of("reaper", "lease")`.

        "argument", "environment NAME", "file PATH" or "default".
        """
        for depth in range(len(location), 0, -1):
            origin = self._origins.get(location[:depth])
            if origin is not None and (origin.whole or depth == len(location)):
                return origin.source
        return "default"


def load_settings(**arguments: Any) -> Settings:
    """The settings of this process: `arguments` > `BDR_*` environment > bdr.toml > defaults.

    Top-level arguments that are None count as not given.

    Raises:
        ConfigError: a line for each setting that is wrong, unknown or unreadable, by the name it was written with.
    """
    settings = Settings(**arguments)
    if settings.source_of("database_url") == f"environment {DATABASE_URL}":
        logger.info("database_url is taken from the environment variable %s", DATABASE_URL)
    return settings
