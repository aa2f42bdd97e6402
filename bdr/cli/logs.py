"""Logging of the command line: lines on standard error, in UTC, with nothing in them that steers a terminal."""

import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from bdr.cli.text import moment, shown

LEVELS: Final = ("debug", "info", "warning", "error")


def configure(level: str) -> None:
    """Log from `level` on what bdr says, and warnings of everything else."""
    handler = _Stderr()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("bdr", "alembic"):
        logging.getLogger(name).setLevel(level.upper())
    # It announces each retry without saying of what; the last failure is bdr's to tell.
    logging.getLogger("stamina").setLevel(logging.ERROR)


class _OneLine(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's
        return moment(datetime.fromtimestamp(record.created, UTC))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return shown(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        text = super().formatException(ei)  # type: ignore[arg-type]  # a private type of the stubs
        return "\n".join(map(shown, text.splitlines()))


class _Stderr(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        # A progress bar puts something else in its place for a while.
        self.stream = sys.stderr
        super().emit(record)
