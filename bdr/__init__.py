"""bdr: a database-backed catalog of binary data for workflow engines.

async with bdr.connect() as binary:
reference = await binary.store_file("report.pdf")
data = await binary.get_data(reference.file_key)
"""

from bdr.catalog.holder import Holding
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
    TransactionConflict,
)
from bdr.execution import ConnectionKind, DataSource, ExecutionData
from bdr.lifecycle import BinaryDataLifecycleManager
from bdr.manager import BinaryDataManager
from bdr.manager.description import BinaryDataDetails
from bdr.manager.explanation import Explanation
from bdr.manager.reader import BinaryDataReader
from bdr.progress import BasicStats, OperationProgress, OperationStatus
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
    "TransactionConflict",
    "UploadConfig",
    "connect",
    "load_settings",
]
