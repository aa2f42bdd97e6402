"""Measures all goals for bdr's speed beside their floors, in one run: `./scripts/bench --quick --only register`."""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

from tests.bench import callers, counting, engines, files, picture, reaping, scale, streams
from tests.bench.ground import FULL, QUICK, Ground, Sizes
from tests.bench.verdict import Comparison, missed, table


async def against_peers(ground: Ground) -> list[Comparison]:
    """They are an extra, and not free of warnings when they are imported."""
    from tests.bench.peers import peers

    return await peers(ground)


ROWS: Final[dict[str, Callable[[Ground], Awaitable[list[Comparison]]]]] = {
    "register": counting.register,
    "hot": counting.hot,
    "register-alone": counting.register_alone,
    "store": files.store,
    "store-alone": files.store_alone,
    "get": files.get,
    "get-cached": files.get_cached,
    "stream": streams.stream,
    "reap": reaping.reap,
    "two-reapers": reaping.two_reapers,
    "peers": against_peers,
    "engines": engines.engines,
    "scale": scale.scale,
    "size": scale.size,
    "curves": callers.curves,
}
_NAMED: Final = ("opendal", "asyncpg", "sqlalchemy")


def machine(ground: Ground) -> str:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in _NAMED)
    return (
        f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, PostgreSQL "
        f"{ground.server.major}, {libraries}"
    )


async def measure(ground: Ground, names: Sequence[str], compared: list[Comparison]) -> None:
    """Adds the rows of those names, told one by one as they are done."""
    async with ground.running():
        for name in names:
            began = time.monotonic()
            of_row = await ROWS[name](ground)
            say(*map(str, of_row), f"  ({name}: {time.monotonic() - began:.0f} s)")
            compared += of_row


def write(ground: Ground, compared: Sequence[Comparison], folder: Path) -> None:
    """Leave the figures as `bench.json`, the table as `bench.md` and the curves as `bench.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = ground.curves
    figures = {
        "machine": machine(ground),
        "sizes": vars(ground.sizes),
        "rows": [one.as_json() for one in compared],
        "curves": {"callers": curves.callers, "catalogs": curves.catalogs, "latencies": curves.latencies},
    }
    (folder / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "bench.md").write_text(f"{machine(ground)}\n\n{table(compared)}\n")
    picture.draw(curves, machine(ground), folder / "bench.png")


def say(*lines: str) -> None:
    """Also in a pipe at once."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def run(sizes: Sizes, names: Sequence[str], into: Path) -> int:
    """Measure, tell and write; 1 when a goal was missed."""
    compared: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="bdr-bench-") as folder:
        ground = Ground(Path(folder), sizes)
        say(machine(ground))
        try:
            asyncio.run(measure(ground, names, compared))
        finally:
            # A long run that is cut off leaves what it has measured.
            if compared:
                write(ground, compared, into)
    wrong = missed(compared)
    say("", table(compared), "", *wrong, f"Figures and picture: {into}")
    return 1 if wrong else 0


def main(words: Sequence[str] | None = None) -> int:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and shorter: under three minutes")
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}")
    parser.add_argument("--into", type=Path, default=Path("build/bench"), help="for bench.json, bench.md, bench.png")
    given = parser.parse_args(words)
    # As after Ctrl-C: every process and the database end with this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run(QUICK if given.quick else FULL, given.only or list(ROWS), given.into)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
