"""bdr: a database-backed catalog of binary data for workflow engines.

async with bdr.connect() as binary:
reference = await binary.store_file("report.pdf")
data = await binary.get_data(reference.file_key)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bdr.connect import connect
from bdr.errors import (
    BinaryStorageError,
    Busy,
    CatalogAhead,
    CatalogNotMigrated,
    CatalogUnavailable,
    ConfigError,
    Corrupt,
    FileNotFound,
    Gone,
    InstanceClosed,
    InvalidArgument,
    IoError,
    Lost,
    NotReferenced,
    OpenDalError,
    OperationError,
    OutcomeUnknown,
    PermissionDenied,
    Pinned,
    StillStoring,
    StorageFull,
    StorageMismatch,
    StorageUnavailable,
    TooMuch,
    TransactionConflict,
)
from bdr.progress import BasicStats, OperationProgress, OperationStatus
from bdr.results import BatchResult, ItemResult

if TYPE_CHECKING:
    from bdr.catalog.holder import Holding
    from bdr.execution import ConnectionKind, DataSource, ExecutionData
    from bdr.lifecycle import BinaryDataLifecycleManager
    from bdr.manager import BinaryDataManager
    from bdr.manager.description import BinaryDataDetails
    from bdr.manager.explanation import Explanation
    from bdr.manager.reader import BinaryDataReader
    from bdr.reaper import ReapReport
    from bdr.reference import BinaryDataMetadata, BinaryDataReference, BinaryFileKind
    from bdr.settings import (
        AccessConfig,
        BinaryStorageConfig,
        CacheConfig,
        DatabaseConfig,
        FsckConfig,
        InstanceConfig,
        LifecycleCleanupConfig,
        OperationsConfig,
        ReaperConfig,
        Settings,
        StorageType,
        UploadConfig,
        load_settings,
    )
    from bdr.storage import OpenDalStorage
    from bdr.storage.protocol import BinaryDataStorage, ObjectMetadata, StorageMarker, StoredObject

__all__ = [
    "AccessConfig",
    "BasicStats",
    "BatchResult",
    "BinaryDataDetails",
    "BinaryDataLifecycleManager",
    "BinaryDataManager",
    "BinaryDataMetadata",
    "BinaryDataReader",
    "BinaryDataReference",
    "BinaryDataStorage",
    "BinaryFileKind",
    "BinaryStorageConfig",
    "BinaryStorageError",
    "Busy",
    "CacheConfig",
    "CatalogAhead",
    "CatalogNotMigrated",
    "CatalogUnavailable",
    "ConfigError",
    "ConnectionKind",
    "Corrupt",
    "DataSource",
    "DatabaseConfig",
    "ExecutionData",
    "Explanation",
    "FileNotFound",
    "FsckConfig",
    "Gone",
    "Holding",
    "InstanceClosed",
    "InstanceConfig",
    "InvalidArgument",
    "IoError",
    "ItemResult",
    "LifecycleCleanupConfig",
    "Lost",
    "NotReferenced",
    "ObjectMetadata",
    "OpenDalError",
    "OpenDalStorage",
    "OperationError",
    "OperationProgress",
    "OperationStatus",
    "OperationsConfig",
    "OutcomeUnknown",
    "PermissionDenied",
    "Pinned",
    "ReapReport",
    "ReaperConfig",
    "Settings",
    "StillStoring",
    "StorageFull",
    "StorageMarker",
    "StorageMismatch",
    "StorageType",
    "StorageUnavailable",
    "StoredObject",
    "TooMuch",
    "TransactionConflict",
    "UploadConfig",
    "connect",
    "load_settings",
]

# Where the names are that need SQLAlchemy, OpenDAL or pydantic: it is read when one of them is asked for, so that
# `bdr --help` need not wait for all of them. The same stands above for those who read types and run nothing.
_MODULES = {
    "bdr.catalog.holder": ("Holding",),
    "bdr.execution": ("ConnectionKind", "DataSource", "ExecutionData"),
    "bdr.lifecycle": ("BinaryDataLifecycleManager",),
    "bdr.manager": ("BinaryDataManager",),
    "bdr.manager.description": ("BinaryDataDetails",),
    "bdr.manager.explanation": ("Explanation",),
    "bdr.manager.reader": ("BinaryDataReader",),
    "bdr.reaper": ("ReapReport",),
    "bdr.reference": ("BinaryDataMetadata", "BinaryDataReference", "BinaryFileKind"),
    "bdr.settings": (
        "AccessConfig",
        "BinaryStorageConfig",
        "CacheConfig",
        "DatabaseConfig",
        "FsckConfig",
        "InstanceConfig",
        "LifecycleCleanupConfig",
        "OperationsConfig",
        "ReaperConfig",
        "Settings",
        "StorageType",
        "UploadConfig",
        "load_settings",
    ),
    "bdr.storage": ("OpenDalStorage",),
    "bdr.storage.protocol": ("BinaryDataStorage", "ObjectMetadata", "StorageMarker", "StoredObject"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Hidden from type checkers, which would take every name for a good one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        module = f"{__name__}.{name}"
        try:
            # What is no public name may be a module of the package, such as `bdr.settings`.
            value = getattr(import_module(_HOMES[name]), name) if name in _HOMES else import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        globals()[name] = value
        return value
