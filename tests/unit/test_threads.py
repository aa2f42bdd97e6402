"""Threads of their own, used again; and those kept for much that is short: bounded, in order, nobody's who has gone."""

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from operator import floordiv
from typing import Any

import pytest

from bdr import threads as module
from bdr.threads import DaemonThreads, in_daemon_thread
from tests.storage.helpers import run_python

FORKED = """
import asyncio, os, sys
from bdr.threads import in_daemon_thread

print(asyncio.run(in_daemon_thread(lambda: 1)), flush=True)
if (child := os.fork()) == 0:
    print(asyncio.run(asyncio.wait_for(in_daemon_thread(lambda: 7), 20)), flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def spare() -> Iterator[list[object]]:
    """Those that wait for more to do, of which there are none at first."""
    found: list[Any] = module._spare
    others: list[Any] = []
    while found:
        with suppress(IndexError):
            others.append(found.pop())
    yield found
    found.extend(others)


def waiting(event: threading.Event) -> threading.Thread:
    assert event.wait(20)
    return threading.current_thread()


async def test_results_and_errors_come_to_who_asked() -> None:
    threads = DaemonThreads(4)
    results = await asyncio.gather(*(threads.run(partial(floordiv, 100, n)) for n in range(50)), return_exceptions=True)
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1:] == [100 // n for n in range(1, 50)]
    threads.close()


async def test_there_are_no_more_threads_than_may_be_and_no_more_than_are_needed() -> None:
    threads = DaemonThreads(3)
    go_on = threading.Event()
    go_on.set()
    alone = {await threads.run(lambda: waiting(go_on)) for _ in range(10)}
    assert len(alone) == 1
    go_on.clear()
    working = [asyncio.create_task(threads.run(lambda: waiting(go_on))) for _ in range(20)]
    await asyncio.sleep(0)
    go_on.set()
    used = alone | set(await asyncio.gather(*working))
    assert len(used) <= 3
    threads.close()
    for one in used:
        await asyncio.to_thread(one.join, 20)
        assert not one.is_alive()


async def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    threads = DaemonThreads(1)
    go_on = threading.Event()
    begun: list[str] = []
    first = asyncio.create_task(threads.run(lambda: waiting(go_on)))
    given_up = asyncio.create_task(threads.run(lambda: begun.append("given up")))
    wanted = asyncio.create_task(threads.run(lambda: begun.append("wanted")))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait({given_up})
    go_on.set()
    await asyncio.gather(first, wanted)
    assert begun == ["wanted"]
    threads.close()


async def test_one_whose_caller_has_gone_meanwhile_keeps_no_thread_from_the_others() -> None:
    threads = DaemonThreads(1)
    go_on = threading.Event()
    for _ in range(3):
        go_on.clear()
        gone = asyncio.create_task(threads.run(lambda: waiting(go_on)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait({gone})
        go_on.set()
        assert await threads.run(lambda: 1) == 1
    threads.close()


def test_a_result_for_a_loop_that_is_closed_is_nobodys() -> None:
    threads = DaemonThreads(1)
    go_on, over = threading.Event(), threading.Event()

    def work() -> None:
        waiting(go_on)
        over.set()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.run(work), 0.01)

    asyncio.run(leave())
    go_on.set()
    assert over.wait(20)
    assert asyncio.run(threads.run(lambda: 1)) == 1
    threads.close()


async def test_results_that_come_at_once_wake_the_loop_once() -> None:
    threads = DaemonThreads(2)
    told = 0
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe

    def counted(*arguments: object) -> object:
        nonlocal told
        told += 1
        return call(*arguments)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
    working = [asyncio.create_task(threads.run(lambda: None)) for _ in range(100)]
    await asyncio.sleep(0)
    # The loop stands still until all are done.
    deadline = time.monotonic() + 20
    while len(threads._done) < 100:
        assert time.monotonic() < deadline
    await asyncio.gather(*working)
    loop.call_soon_threadsafe = call  # type: ignore[method-assign]
    assert told <= 2
    threads.close()


async def test_a_thread_that_has_nothing_to_do_keeps_nothing() -> None:
    class Data:
        pass

    threads = DaemonThreads(1)
    given = Data()
    kept = weakref.ref(given)
    assert await threads.run(partial(id, given)) == id(given)
    del given
    deadline = time.monotonic() + 20
    while kept() is not None:
        assert time.monotonic() < deadline
    threads.close()


async def test_a_thread_that_has_ended_what_it_did_is_used_again(spare: list[object]) -> None:
    assert len({await in_daemon_thread(threading.current_thread) for _ in range(20)}) == 1
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(partial(floordiv, 1, 0))
    assert len(spare) == 1


async def test_who_hangs_in_a_thread_keeps_nobody_else_waiting(spare: list[object]) -> None:
    go_on = threading.Event()
    hanging = [asyncio.create_task(in_daemon_thread(lambda: waiting(go_on))) for _ in range(3)]
    await asyncio.sleep(0)
    other = await in_daemon_thread(threading.current_thread)
    go_on.set()
    assert other not in {*await asyncio.gather(*hanging)}
    assert len(spare) == 4


async def test_what_comes_as_a_thread_gives_up_waiting_is_done(
    spare: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SPARE_FOR", 0.001)
    used: set[threading.Thread] = set()
    async with asyncio.timeout(60):
        for number in range(300):
            used.add(await in_daemon_thread(threading.current_thread))
            # Up to twice as long as a thread waits.
            await asyncio.sleep(number % 20 / 10_000)
    assert len(used) > 1, "none has ended"
    for one in used:
        await asyncio.to_thread(one.join, 20)
    assert spare == []


async def test_a_thread_that_waits_for_more_keeps_nothing_of_what_it_did(spare: list[object]) -> None:
    class Data:
        pass

    given = Data()
    kept = weakref.ref(given)
    assert await in_daemon_thread(partial(id, given)) == id(given)
    del given
    deadline = time.monotonic() + 20
    while kept() is not None:
        assert time.monotonic() < deadline
    assert len(spare) == 1


async def test_a_result_that_cannot_be_told_costs_no_other_caller_theirs(
    spare: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_call", broken)
    lost = asyncio.create_task(in_daemon_thread(lambda: None))
    deadline = time.monotonic() + 20
    while not caplog.records:
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    monkeypatch.undo()
    async with asyncio.timeout(20):
        assert await in_daemon_thread(lambda: 1) == 1
    lost.cancel()
    assert len(spare) == 1


async def test_a_process_that_was_forked_has_threads_of_its_own() -> None:
    code, output, _ = await run_python(FORKED)
    assert (code, output) == (0, "1\n7\n")
