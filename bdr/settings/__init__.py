"""Settings: arguments > `BDR_*` environment > bdr.toml > defaults, each value with the place it came from."""

from bdr.settings.describe import SettingLine, describe_settings
from bdr.settings.load import Settings, load_settings
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
    StorageType,
    UploadConfig,
)
from bdr.settings.values import Duration, PositiveDuration, Retention, Size

__all__ = [
    "AccessConfig",
    "BinaryStorageConfig",
    "CacheConfig",
    "DatabaseConfig",
    "Duration",
    "FsckConfig",
    "InstanceConfig",
    "LifecycleCleanupConfig",
    "OperationsConfig",
    "PositiveDuration",
    "ReaperConfig",
    "Retention",
    "SettingLine",
    "Settings",
    "Size",
    "StorageType",
    "UploadConfig",
    "describe_settings",
    "load_settings",
]
