"""All tables of the catalog, for migrations: importing this module registers every one in `metadata`."""

from bdr.catalog.base import SCHEMA, Base
from bdr.catalog.blob import Blob
from bdr.catalog.clock import ReaperClock
from bdr.catalog.holder import ReferenceHolder
from bdr.catalog.instance import EngineInstance
from bdr.catalog.operation import Operation, OperationTotal
from bdr.catalog.reference import Reference
from bdr.catalog.storage import Catalog, Storage

metadata = Base.metadata

__all__ = [
    "SCHEMA",
    "Blob",
    "Catalog",
    "EngineInstance",
    "Operation",
    "OperationTotal",
    "ReaperClock",
    "Reference",
    "ReferenceHolder",
    "Storage",
    "metadata",
]
