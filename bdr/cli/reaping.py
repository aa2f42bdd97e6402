"""`bdr reap`, one pass, and `bdr reaper`, passes until it is told to stop."""

import logging
from typing import TYPE_CHECKING

from bdr.cli.failures import DONE, FAILED, say
from bdr.cli.logs import configure
from bdr.cli.options import Given, Json
from bdr.cli.output import emit_fields, emit_json
from bdr.cli.progress import waiting
from bdr.cli.text import size

if TYPE_CHECKING:
    from bdr.reaper import ReapReport


async def reap(*, confirm: bool = False, as_json: Json = False, common: Given) -> int:
    """Run one pass of the reaper: delete what has expired.

    The exit code is 1 when something could not be deleted, a storage could not
    be reached, or the pass stopped before it deleted anything.

    Args:
        confirm: Go on although very much would be deleted, or the database's clock has jumped; reapers stop then.
    """
    from bdr.connect import connect

    async with connect(settings=common.settings_to_connect()) as binary:
        with waiting("Reaping"):
            report = await binary.reap(confirmed=confirm)
    if as_json:
        emit_json(report.model_dump(mode="json"))
    else:
        emit_fields(_fields(report))
    if report.trouble is None:
        return DONE
    # The pass has logged it, unless not even warnings are.
    if not logging.getLogger("bdr.reaper").isEnabledFor(logging.WARNING):
        say(f"The pass had trouble: {report.trouble}")
    return FAILED


async def reaper(*, common: Given) -> None:
    """Run the reaper until it is told to stop: the daemon.

    It logs to standard error. SIGTERM and SIGINT let the batch that is under way
    end, and the exit code is 0; a second one ends it at once. A database or
    storage that is away is waited for. Any number of reapers may run.
    """
    from bdr.cli.daemon import Daemon

    configure(common.level("info"))
    await Daemon(common.settings_to_connect()).run()


def _fields(report: "ReapReport") -> list[tuple[str, str]]:
    values = report.model_dump(exclude={"unreachable", "stopped"}) | {
        "bytes": f"{report.bytes} ({size(report.bytes)})",
        "duration": f"{report.duration:.2f} s",
    }
    return [(name, str(value)) for name, value in values.items()]
