"""Options that many commands share."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, validators

from bdr.cli.failures import UsageError
from bdr.cli.logs import LEVELS

if TYPE_CHECKING:
    from bdr.settings import Settings


@dataclass(frozen=True)
class Common:
    """What every command takes.

    Attributes:
        database_url: The catalog's PostgreSQL. Other users of this machine can see it here: BDR_DATABASE_URL and
            BDR_DATABASE_URL_FILE keep a password from them.
        log_level: What is logged on standard error: debug, info, warning or error.
    """

    database_url: str | None = None
    log_level: str | None = None

    def level(self, default: str) -> str:
        """The level that was asked for, or `default`."""
        level = (self.log_level or default).lower()
        if level not in LEVELS:
            raise UsageError(f"--log-level is one of {', '.join(LEVELS)}, not {self.log_level!r}.")
        return level

    def settings(self) -> "Settings":
        """The settings of this process, with what was given here on top."""
        from bdr.settings import load_settings

        return load_settings(database_url=self.database_url)

    def settings_to_connect(self) -> "Settings":
        """The same, for an engine that does one thing.

        It remembers no places, so needs no connection to listen, and makes no rows for uploads to come.
        """
        settings = self.settings()
        cache = settings.cache.model_copy(update={"locations": 0})
        upload = settings.upload.model_copy(update={"reserve_ahead": 0})
        return settings.model_copy(update={"cache": cache, "upload": upload})


CommonOptions = Annotated[Common, Parameter(name="*", group=Group("Global options", sort_key=9))]
# Parsed before the command's own options, wherever they stand; see `bdr.cli.app`.
Given = Annotated[Common, Parameter(parse=False)]

Json = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Key = Annotated[str, Parameter(help="The file key, as `bdr put` and `bdr ls` print it.")]
Limit = Annotated[
    int, Parameter(help="At most that many, up to 10000.", validator=validators.Number(gte=1, lte=10_000))
]


def duration(option: str, text: str) -> timedelta:
    """The length of time that was given with an option."""
    from bdr.settings.values import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
