"""Engines and reapers under a steady load: does anything grow? `./scripts/soak --minutes 30 --into FOLDER`."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bdr
from bdr.catalog import migrate
from bdr.embedded import EmbeddedPostgres
from tests.soak.run import Broken, Report, Schedule, Soak


async def soak(schedule: Schedule, folder: Path) -> Report:
    storage = bdr.BinaryStorageConfig(storage_type="fs", root=str(folder / "objects"))
    async with EmbeddedPostgres(folder / "postgres") as url:
        await migrate.upgrade(url)
        return await Soak(url, storage, schedule).run()


def main(words: Sequence[str] | None = None) -> int:
    """Run it, write figures and a picture, say what came of it; 1 when anything grew or was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two measurements")
    parser.add_argument("--pace", type=float, default=4.0, help="files that each engine begins to use in a second")
    parser.add_argument("--into", type=Path, default=Path("build/soak"), help="folder for soak.json and soak.png")
    given = parser.parse_args(words)
    # As after Ctrl-C: every process and the database end with this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bdr-soak-") as folder:
        try:
            report = asyncio.run(soak(Schedule(given.minutes * 60, given.every, given.pace), Path(folder)))
        except Broken as error:
            sys.stdout.write(f"{error}\n")
            return 1
    report.write(given.into)
    sys.stdout.write("\n".join([str(report), *report.wrong, f"Figures and picture: {given.into}"]) + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
