"""Engines on each kind of storage that can list, and a place for the plan."""

from pathlib import Path

import pytest

import bdr
from tests.fixtures.engines import Connect
from tests.fixtures.storages import MakeStorageConfig
from tests.fsck.support import Damage
from tests.lifecycle.conftest import caller, connect_through

__all__ = ["caller", "connect_through"]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "fsck.plan"


@pytest.fixture(params=["fs", "s3", "memory"])
async def listing(
    request: pytest.FixtureRequest, connect: Connect, make_storage_config: MakeStorageConfig
) -> bdr.BinaryDataLifecycleManager:
    """An engine on a storage that can list, of each kind in turn."""
    return await connect(storage=make_storage_config(request.param), fsck=bdr.settings.FsckConfig(batch_size=3))


@pytest.fixture
def damage(listing: bdr.BinaryDataLifecycleManager) -> Damage:
    """What can go wrong in that engine's storage."""
    return Damage(listing)
