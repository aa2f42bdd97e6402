"""The sections of the settings; each can also be built by hand and given to `bdr.connect`."""

import re
import socket
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from bdr.settings.problems import error_of_section
from bdr.settings.secrets import shown_options, without_secrets
from bdr.settings.values import Duration, PositiveDuration, Retention, Size, shown_input

MiB = 1_024 * 1_024
_SCHEME = re.compile(r"[a-z][a-z0-9_-]{0,62}")

if TYPE_CHECKING:
    _Base = BaseModel
else:

    class _ConfigErrors(type(BaseModel)):
        # An `__init__` instead would also run inside `Settings`, and each problem would lose its place there.

        def __call__(cls, *args: Any, **values: Any) -> Any:
            try:
                return super().__call__(*args, **values)
            except ValidationError as error:
                raise error_of_section(error, cls) from None

    class _Base(BaseModel, metaclass=_ConfigErrors):
        pass


class Section(_Base):
    """A group of settings: immutable, unknown names refused, no value in its error messages that may be secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, ser_json_timedelta="iso8601")


class StorageType(StrEnum):
    """The storages that bdr's own tests cover; any other service compiled into OpenDAL works by its name."""

    FS = "fs"
    S3 = "s3"
    MEMORY = "memory"
    REDIS = "redis"


def _storage_type(value: str) -> str:
    name = value.strip().lower()
    if not _SCHEME.fullmatch(name):
        known = ", ".join(StorageType)
        raise ValueError(
            f"{shown_input(value)} is no storage type: use {known}, or another OpenDAL service by its name"
        )
    return StorageType(name) if name in set(StorageType) else name


def _options(value: dict[str, Any]) -> dict[str, Any]:
    for name, option in value.items():
        if not isinstance(option, str | int | float):
            # Pydantic reports a ValueError with its place, and lets a TypeError through.
            raise ValueError(  # noqa: TRY004 - see above
                f"the option `{name}` must be text, a number or a boolean, not {type(option).__name__}"
            )
    return value


class BinaryStorageConfig(Section):
    """One storage: what it is, where it lies, and the options of its service.

    `repr`, `str` and JSON never show a secret; attributes and pickles keep them.

    Attributes:
        storage_type: `fs`, `s3`, `memory`, `redis` or any other OpenDAL service.
        root: the folder (fs) or the prefix (object storages) under which everything lies.
        config: the service's own options, such as bucket, region, endpoint, access_key, secret_key, db.
        timeout: for one small call (stat, delete, list).
        io_timeout: for one read or write call.
        concurrency: how many calls run at once.
    """

    storage_type: Annotated[str, AfterValidator(_storage_type)]
    root: str = ""
    config: Annotated[dict[str, Any], AfterValidator(_options)] = Field(default_factory=dict)
    timeout: PositiveDuration = timedelta(seconds=30)
    io_timeout: PositiveDuration = timedelta(seconds=60)
    concurrency: int = Field(default=64, ge=1, le=10_000)

    @model_validator(mode="after")
    def _fs_has_a_root(self) -> Self:
        if self.storage_type == StorageType.FS and not self.root:
            raise ValueError("a storage of type fs needs `root`, the folder that its objects lie in")
        return self

    @field_serializer("root", when_used="json")
    def _root_shown(self, root: str) -> str:
        return without_secrets(root)

    @field_serializer("config", when_used="json")
    def _options_shown(self, config: dict[str, Any]) -> dict[str, Any]:
        return shown_options(config)

    def __repr_args__(self) -> Any:
        shown = {"root": without_secrets(self.root), "config": shown_options(self.config)}
        return [(name, shown.get(name or "", value)) for name, value in super().__repr_args__()]


class LifecycleCleanupConfig(Section):
    """How long data is kept; stamped on every reference when it is stored. None (or "never") keeps it for ever.

    Attributes:
        zero_ref_retention: after the last release or access, while nothing refers to it; zero cleans up at once.
        max_retention: after it was stored.
        held_at_max_retention: what becomes of data that is then still referred to: "delete", or "keep" until it is not.
        cleanup_interval: between two passes of the reaper.
        auto_cleanup: whether `start_cleanup_task` starts one.
    """

    zero_ref_retention: Retention = timedelta(hours=1)
    max_retention: Retention = timedelta(days=7)
    held_at_max_retention: Literal["delete", "keep"] = "delete"
    cleanup_interval: PositiveDuration = timedelta(minutes=5)
    auto_cleanup: bool = True


class ReaperConfig(Section):
    """How a pass of the reaper works.

    Attributes:
        batch_size: rows claimed at a time.
        lease: how long a claimed row is left to the one who claimed it.
        write_grace: how long an abandoned upload's row outlives it, for a write that still lands.
        max_attempts: failed deletes of one object before it is quarantined.
        concurrency: deletes at once, at most.
        backoff_initial: after the first failed delete of an object; doubles up to `backoff_max`.
        drain_timeout: how long a stopped reaper may finish its pass.
        max_references: a pass that would delete more references than this, and more than `max_share` of all, stops
            before it deletes anything, and waits for `bdr reap --confirm`.
        max_share: of all references, between 0 and 1; 1 turns that off.
        clock_tolerance: a pass also stops when the database's clock has moved this much unlike time.
    """

    batch_size: int = Field(default=1_000, ge=1, le=100_000)
    lease: PositiveDuration = timedelta(minutes=5)
    write_grace: Duration = timedelta(minutes=15)
    max_attempts: int = Field(default=8, ge=1, le=1_000)
    concurrency: int = Field(default=32, ge=1, le=1_000)
    backoff_initial: PositiveDuration = timedelta(seconds=30)
    backoff_max: PositiveDuration = timedelta(hours=1)
    drain_timeout: Duration = timedelta(seconds=30)
    max_references: int = Field(default=10_000, ge=0)
    max_share: float = Field(default=0.5, gt=0, le=1)
    clock_tolerance: PositiveDuration = timedelta(minutes=10)

    @model_validator(mode="after")
    def _backoff_grows(self) -> Self:
        if self.backoff_max < self.backoff_initial:
            raise ValueError("`backoff_max` must not be shorter than `backoff_initial`")
        return self


class UploadConfig(Section):
    """How an upload is kept alive.

    Attributes:
        lease: the deadline of an upload, renewed while it goes on; past it, the reaper removes what was written.
        reserve_ahead: how many rows an engine that stores has in hand for uploads to come; 0 makes each by itself.
    """

    lease: PositiveDuration = timedelta(minutes=10)
    reserve_ahead: int = Field(16, ge=0, le=1000)


class CacheConfig(Section):
    """What one engine keeps in memory: files, and where files lie; zero turns either off.

    Attributes:
        capacity: bytes of files in all.
        max_entry: the largest file, in bytes.
        locations: of how many files it is remembered where they lie; that takes one more connection, which listens.
    """

    capacity: Size = 100 * MiB
    max_entry: Size = 10 * MiB
    locations: int = Field(default=20_000, ge=0, le=10_000_000)


class DatabaseConfig(Section):
    """The connections to PostgreSQL.

    Attributes:
        pool_size: connections of one engine.
        pool_timeout: how long to wait for a free one.
        connect_timeout: for making one.
        statement_timeout: for one statement.
        lock_timeout: how long a statement waits for a lock.
    """

    pool_size: int = Field(default=10, ge=1, le=1_000)
    pool_timeout: PositiveDuration = timedelta(seconds=30)
    connect_timeout: PositiveDuration = timedelta(seconds=10)
    statement_timeout: PositiveDuration = timedelta(seconds=30)
    lock_timeout: PositiveDuration = timedelta(seconds=10)


class InstanceConfig(Section):
    """An engine among the others.

    Attributes:
        name: what operators know it by; the host's name by default.
        heartbeat_interval: between two signs of life.
        timeout: without one for this long it is missed; after as long again it is declared dead.
    """

    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=255)
    heartbeat_interval: PositiveDuration = timedelta(seconds=10)
    timeout: PositiveDuration = timedelta(seconds=60)

    @model_validator(mode="after")
    def _survives_a_late_heartbeat(self) -> Self:
        if self.timeout < 2 * self.heartbeat_interval:
            raise ValueError("`timeout` must be at least twice `heartbeat_interval`, or one late heartbeat is fatal")
        return self


class OperationsConfig(Section):
    """The records of operations.

    Attributes:
        retention: how long one is kept before it is added to the totals; None (or "never") keeps it for ever.
        progress_interval: between two writes of one operation's progress.
    """

    retention: Retention = timedelta(days=30)
    progress_interval: Duration = timedelta(seconds=1)


class AccessConfig(Section):
    """The times of access, which are gathered in memory and written together.

    Attributes:
        touch_interval: a reference's access time is written at most this often.
        flush_interval: between two writes of what was gathered.
    """

    touch_interval: Duration = timedelta(minutes=1)
    flush_interval: PositiveDuration = timedelta(seconds=1)


class FsckConfig(Section):
    """How the catalog is compared with its storages, and how much of it a repair may change unasked.

    Attributes:
        batch_size: rows and objects looked at together.
        concurrency: objects that are looked up or moved at once.
        reads: objects read at once when checksums are compared; each takes up to 8 MiB of memory.
        max_share: a plan for more than this share of a storage's blobs is repaired only when that is confirmed.
        max_items: a plan for no more than these is always repaired, however small the storage.
    """

    batch_size: int = Field(default=1_000, ge=1, le=100_000)
    concurrency: int = Field(default=32, ge=1, le=1_000)
    reads: int = Field(default=4, ge=1, le=1_000)
    max_share: float = Field(default=0.05, ge=0, le=1)
    max_items: int = Field(default=100, ge=0)
