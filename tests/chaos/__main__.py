"""A storm as long as you like: `./scripts/chaos --minutes N --seed S`."""

import argparse
import asyncio
import logging
import sys
import tempfile

from tests.chaos.storm import Report, weather
from tests.fixtures.postgres import PostgresServer, wheel_bindir


async def _storm(minutes: float, seed: int, folder: str) -> Report:
    server = PostgresServer(wheel_bindir(), fsync=True)
    try:
        server.start()
        url = server.url(await server.create_database(await server.migrated_template()))
        return await weather(server, url, {"storage_type": "fs", "root": folder}, minutes * 60, seed)
    finally:
        server.discard()


def main() -> int:
    """Run it, print what came of it; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    # An outage is what this is about: that it was noticed is no news.
    logging.getLogger("bdr").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="bdr-chaos-") as folder:
        report = asyncio.run(_storm(given.minutes, given.seed, folder))
    sys.stdout.write("\n".join([str(report), *report.violations]) + "\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
