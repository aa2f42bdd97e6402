"""What becomes of data that is still held when its longest life is over: the storing engine's setting decides."""

from datetime import timedelta

import pytest

import bdr
from tests.fixtures.engines import AT_ONCE, Connect


@pytest.mark.parametrize(("policy", "reaped"), [("delete", True), ("keep", False)])
async def test_the_setting_of_the_storing_engine_decides(connect: Connect, policy: str, reaped: bool) -> None:
    life = {"max_retention": AT_ONCE, "zero_ref_retention": timedelta(days=1), "held_at_max_retention": policy}
    storing = await connect(lifecycle=bdr.LifecycleCleanupConfig.model_validate(life))
    other = await connect()
    held = await storing.store_data(b"held beyond its time")
    await other.reap()
    assert await other.data_exists(held.file_key) is not reaped


async def test_what_was_kept_while_held_goes_with_its_last_reference(connect: Connect) -> None:
    life = bdr.LifecycleCleanupConfig(
        max_retention=AT_ONCE, zero_ref_retention=timedelta(days=1), held_at_max_retention="keep"
    )
    binary = await connect(lifecycle=life)
    held = await binary.store_data(b"held beyond its time")
    assert (await binary.reap()).references == 0
    assert await binary.release_reference(held.file_key) == 0
    assert (await binary.reap()).references == 1
    assert not await binary.data_exists(held.file_key)
