"""Files on one catalog and its storages."""

from bdr.manager.manager import BinaryDataManager

__all__ = ["BinaryDataManager"]
