"""How many objects are deleted at once, and what happens when there are no threads for it."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from bdr import ReaperConfig, threads
from bdr.catalog import expiry
from bdr.reaper import reap
from bdr.storage import OpenDalStorage
from bdr.storage.deleting import Outcomes
from tests.fixtures.engines import Connect
from tests.lifecycle.support import make_due
from tests.reaper.support import EAGER, blobs, expired, keys_left, store_many


class Watched:
    """Remembers how many objects each call to a storage may delete at once, and all of them together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        self.together: list[int] = []
        running: list[int] = []
        delete_many = OpenDalStorage.delete_many

        async def watched(storage: OpenDalStorage, paths: Sequence[str], *, concurrency: int, **more: Any) -> Outcomes:
            running.append(concurrency)
            self.asked.append(concurrency)
            self.together.append(sum(running))
            try:
                return await delete_many(storage, paths, concurrency=concurrency, **more)
            finally:
                running.remove(concurrency)

        monkeypatch.setattr(OpenDalStorage, "delete_many", watched)


@pytest.mark.parametrize(("concurrency", "shares"), [(1, {1}), (2, {1}), (8, {2, 3}), (9, {3})])
async def test_a_pass_deletes_no_more_objects_at_once_than_it_may(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, concurrency: int, shares: set[int]
) -> None:
    binary = await connect(reaper=ReaperConfig(batch_size=1, concurrency=concurrency))
    await expired(binary, 2)
    await binary.engine.database.transaction(lambda own: expiry.claim_expired(own, "main", 2))
    await expired(binary, 10)
    watched = Watched(monkeypatch)
    assert (await binary.reap()).blobs == 12
    # What was due before goes alone, and first.
    assert watched.asked[:2] == [concurrency] * 2
    assert len(watched.asked) == 12
    assert {*watched.asked[2:]} == shares
    assert max(watched.together) <= concurrency


@pytest.mark.parametrize("concurrency", range(1, 20))
def test_the_batches_of_a_pass_share_all_that_may_be_deleted_at_once(concurrency: int) -> None:
    shares = reap._shares(concurrency)
    assert sum(shares) == concurrency
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1


async def test_without_threads_nothing_fails_and_all_is_deleted_later(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    binary = await connect(reaper=EAGER)
    keys = await store_many(binary, 4)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.daemon:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(threads, "_spare", [])
    assert [one.error for one in await binary.delete_many(keys)] == [None] * 4
    assert "is left to the reaper: no thread could be started" in caplog.text
    assert await keys_left(binary) == set()
    await make_due(binary)
    report = await binary.reap()
    assert (report.blobs, report.failed) == (0, 0)
    assert "can't start new thread" in report.unreachable["main"]
    assert [row[:2] for row in await blobs(binary)] == [("deleting", 0)] * 4
    monkeypatch.undo()
    await make_due(binary)
    assert (await binary.reap()).blobs == 4
