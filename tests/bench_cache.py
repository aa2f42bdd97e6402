"""Policies for the cache of files on traces like those of workflows: hit rates, and the time a call takes.

`./scripts/bench_cache --requests N --into FOLDER` prints the tables of docs/cache.md and writes them as JSON.
"""

import argparse
import heapq
import importlib
import itertools
import json
import math
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bdr.manager.cache import OVERHEAD, Kept

KiB: Final = 1024
MiB: Final = 1024 * KiB
CAPACITIES: Final = (32 * MiB, 100 * MiB, 320 * MiB)
LIMITS: Final = (256 * KiB, MiB, 4 * MiB, 10 * MiB)
SMALLEST, MEDIAN, LARGEST, SPREAD = KiB, 64 * KiB, 8 * MiB, 1.5
FILES: Final = 20_000

Get = Callable[[uuid.UUID], int | None]
Put = Callable[[uuid.UUID, int], None]
Policy = Callable[[int], tuple[Get, Put]]


@dataclass(frozen=True, slots=True)
class Trace:
    """Files by number, in the order in which they are read; `~number` is where one is stored."""

    name: str
    events: list[int]
    sizes: list[int]
    keys: list[uuid.UUID]


@dataclass(frozen=True, slots=True)
class Result:
    """What one policy did on one trace: shares of reads and of bytes that it saved, and seconds a read took."""

    trace: str
    policy: str
    capacity: int
    limit: int
    objects: float
    bytes: float
    seconds: float


def zipf(rng: random.Random, files: int, skew: float, reads: int) -> list[int]:
    """Reads of files whose popularity falls with a power of their rank; their numbers say nothing of it."""
    weights = list(itertools.accumulate((rank + 1) ** -skew for rank in range(files)))
    numbers = list(range(files))
    rng.shuffle(numbers)
    return [numbers[rank] for rank in rng.choices(range(files), cum_weights=weights, k=reads)]


def scanned(rng: random.Random, reads: int) -> list[int]:
    """Zipf, interrupted 15 times by a pass over files that nobody reads again: a quarter of all reads."""
    popular = zipf(rng, FILES, 0.9, reads * 3 // 4)
    new = itertools.count(FILES)
    part, once = len(popular) // 15, (reads - len(popular)) // 15
    parts = (popular[part * step : part * (step + 1)] for step in range(15))
    return [number for some in parts for number in (*some, *itertools.islice(new, once))]


def shifting(rng: random.Random, reads: int) -> list[int]:
    """A working set of 4,000 files, half of which are others after every eighth of the reads."""
    return [2_000 * phase + number for phase in range(8) for number in zipf(rng, 4_000, 0.9, reads // 8)]


def workflow(rng: random.Random, reads: int, first: int = 0, lag: float = 170.0) -> list[int]:
    """Files that are stored, read one to five times soon after, and never again; about 500 are in use at once."""
    timed: list[tuple[float, int]] = []
    left, at = reads, 0.0
    for number in itertools.count(first):
        if left <= 0:
            break
        at += 1
        timed.append((at, ~number))
        times = rng.randint(1, 5)
        timed += [(at + lag * sum(waits), number) for waits in _waits(rng, times)]
        left -= times
    return [event for _, event in sorted(timed)]


def _waits(rng: random.Random, times: int) -> list[list[float]]:
    single = [rng.expovariate(1) for _ in range(times)]
    return [single[: count + 1] for count in range(times)]


def mixed(rng: random.Random, reads: int) -> list[int]:
    """Seven tenths are a workflow's own files, the rest are 4,000 that all workflows read."""
    own = workflow(rng, reads * 7 // 10, first=4_000)
    shared = [(rng.random() * len(own), number) for number in zipf(rng, 4_000, 0.9, reads * 3 // 10)]
    return [event for _, event in heapq.merge(enumerate(own), sorted(shared), key=lambda one: one[0])]


TRACES: Final[Mapping[str, Callable[[random.Random, int], list[int]]]] = {
    "Zipf 0.7": lambda rng, reads: zipf(rng, FILES, 0.7, reads),
    "Zipf 0.9": lambda rng, reads: zipf(rng, FILES, 0.9, reads),
    "Zipf 1.1": lambda rng, reads: zipf(rng, FILES, 1.1, reads),
    "Zipf 0.9 with scans": scanned,
    "shifting": shifting,
    "workflow": workflow,
    "workflow and shared": mixed,
}


def trace(name: str, reads: int) -> Trace:
    """The same for the same name and length, always."""
    rng = random.Random(name)
    events = TRACES[name](rng, reads)
    files = max(max(one, ~one) for one in events) + 1
    sizes = [int(min(max(rng.lognormvariate(math.log(MEDIAN), SPREAD), SMALLEST), LARGEST)) for _ in range(files)]
    return Trace(name, events, sizes, [uuid.UUID(int=rng.getrandbits(128)) for _ in range(files)])


def kept(capacity: int) -> tuple[Get, Put]:
    """What bdr does."""
    cache: Kept[int] = Kept(capacity)
    return cache.get, lambda key, size: cache.put(key, size, size)


def moka(policy: str) -> Policy:
    """moka-py; after each insert its pending work is done, else a burst holds ten times the capacity meanwhile."""

    def make(capacity: int) -> tuple[Get, Put]:
        cache = _library("moka_py").Moka(capacity, policy=policy, weigher=lambda _, size: size + OVERHEAD)

        def put(key: uuid.UUID, size: int) -> None:
            cache.set(key, size)
            cache.run_pending_tasks()
            cache.run_pending_tasks()

        return cache.get, put

    return make


def library(name: str, policy: str) -> Policy:
    """A class of cachebox or cachetools; both refuse what is larger than the capacity with an error."""

    def make(capacity: int) -> tuple[Get, Put]:
        # One asks for the weight of a key and its value, the other for that of a value.
        cache = getattr(_library(name), policy)(capacity, getsizeof=lambda *entry: entry[-1] + OVERHEAD)

        def put(key: uuid.UUID, size: int) -> None:
            if size + OVERHEAD <= capacity:
                cache[key] = size

        return cache.get, put

    return make


def nothing(_capacity: int) -> tuple[Get, Put]:
    return lambda _: None, lambda _key, _size: None


POLICIES: Final[Mapping[str, Policy]] = {
    "bdr": kept,
    "moka tiny_lfu": moka("tiny_lfu"),
    "moka lru": moka("lru"),
    "cachebox LRU": library("cachebox", "LRUCache"),
    "cachebox LFU": library("cachebox", "LFUCache"),
    "cachetools LRU": library("cachetools", "LRUCache"),
    "cachetools LFU": library("cachetools", "LFUCache"),
    "none": nothing,
}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        sys.exit(f"{name} is not installed; it is in the extra `bench`: pip install -e '.[bench]'")


def replay(on: Trace, name: str, capacity: int, limit: int = LARGEST + 1, *, storing: bool = False) -> Result:
    """Read all of the trace through a policy; with `storing`, what is stored is offered to it as well."""
    get, put = POLICIES[name](capacity)
    sizes, keys = on.sizes, on.keys
    events = on.events if storing else [one for one in on.events if one >= 0]
    hits = saved = 0
    began = time.perf_counter()
    for one in events:
        if one < 0:
            if sizes[~one] < limit:
                put(keys[~one], sizes[~one])
        elif sizes[one] >= limit:
            continue
        elif get(keys[one]) is None:
            put(keys[one], sizes[one])
        else:
            hits += 1
            saved += sizes[one]
    took = time.perf_counter() - began
    read = [sizes[one] for one in on.events if one >= 0]
    return Result(on.name, name, capacity, limit, hits / len(read), saved / sum(read), took / len(read))


def policies(traces: Sequence[Trace]) -> Iterator[tuple[str, list[Result]]]:
    """All policies on all traces, a table for each capacity."""
    for capacity in CAPACITIES:
        yield (
            f"{capacity // MiB} MiB: reads saved / bytes saved, in percent",
            [replay(one, name, capacity) for one in traces for name in POLICIES],
        )


def limits(traces: Sequence[Trace]) -> list[Result]:
    """bdr's policy with smaller largest entries."""
    return [replay(one, "bdr", capacity, limit) for one in traces for capacity in CAPACITIES for limit in LIMITS]


def stored(traces: Sequence[Trace]) -> list[Result]:
    """bdr's policy where files are put into the cache as they are stored."""
    some = [one for one in traces if min(one.events) < 0]
    return [replay(one, "bdr", capacity, storing=True) for one in some for capacity in CAPACITIES]


def table(results: Iterable[Result], column: Callable[[Result], str]) -> str:
    """Results by trace and column, as a table in Markdown."""
    rows: dict[str, dict[str, str]] = {}
    for one in results:
        rows.setdefault(one.trace, {})[column(one)] = f"{one.objects * 100:.1f} / {one.bytes * 100:.1f}"
    columns = list(next(iter(rows.values())))
    lines = [["trace", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(cells[name_] for name_ in columns)] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def times(results: Sequence[Result]) -> str:
    """The median over all traces and capacities of what a read took, for each policy."""
    medians = {name: statistics.median(one.seconds for one in results if one.policy == name) * 1e6 for name in POLICIES}
    return "microseconds a read: " + ", ".join(f"{name} {value:.1f}" for name, value in medians.items())


def main(words: Sequence[str] | None = None) -> int:
    """Replay, print, and write what came of it."""
    parser = argparse.ArgumentParser(prog="scripts/bench_cache", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="reads in each trace")
    parser.add_argument("--into", type=Path, default=Path("build/bench_cache"), help="folder for bench_cache.json")
    given = parser.parse_args(words)
    traces = [trace(name, given.requests) for name in TRACES]
    compared: list[Result] = []
    for title, results in policies(traces):
        sys.stdout.write(f"{title}\n\n{table(results, lambda one: one.policy)}\n\n")
        compared += results
    sys.stdout.write(f"{times(compared)}\n\n")
    limited, offered = limits(traces), stored(traces)
    by_limit = table(limited, lambda one: f"{one.capacity // MiB} MiB, below {one.limit // KiB} KiB")
    by_capacity = table(offered, lambda one: f"{one.capacity // MiB} MiB")
    sys.stdout.write(f"bdr with a largest entry\n\n{by_limit}\n\nbdr, kept when stored\n\n{by_capacity}\n")
    given.into.mkdir(parents=True, exist_ok=True)
    groups = {"policies": compared, "limits": limited, "stored": offered}
    written = {name: [asdict(one) for one in results] for name, results in groups.items()}
    (given.into / "bench_cache.json").write_text(json.dumps(written, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
