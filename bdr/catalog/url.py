"""Database URLs as people write them: libpq's spellings and SQLAlchemy's, checked before anything connects."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from bdr.errors import ConfigError

EXAMPLE: Final = "postgresql://user:password@host:5432/database"
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SCHEMES: Final = ("postgres", "postgresql", "postgresql+asyncpg")
# Understood by asyncpg in the URL itself.
_FILES: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
_DRIVER: Final = (
    *("host", "port", "user", "password", "dbname", "database", "passfile", "service"),
    *("sslmode", *_FILES, "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version"),
    *("target_session_attrs", "krbsrvname", "gsslib"),
)
# Sent to the server when the session starts.
_SESSION: Final = ("application_name", "options")
# libpq's own, without a counterpart here; leaving them out changes nothing that a caller could rely on.
_WITHOUT_EFFECT: Final = (
    *("client_encoding", "fallback_application_name", "sslcompression", "sslsni", "tcp_user_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
)
# Wishes that may go unfulfilled; as a demand they are refused.
_PREFERENCES: Final = ("channel_binding", "gssencmode")
_SECRET: Final = re.compile(r"(?<![^?&\s])(password|sslpassword)\s*=\s*('[^']*'|[^&\s]*)")
_KNOWN: Final = (*_DRIVER, *_SESSION, *_PREFERENCES, *_WITHOUT_EFFECT, "ssl", "connect_timeout")
_LAST_PORT: Final = 65535
_PORTS: Final = re.compile(r"(\d{1,5}(,\d{1,5})*)?")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A checked database URL.

    Attributes:
        dsn: what asyncpg is given; it fills missing parts from the PG* environment and ~/.pgpass.
        session: settings the session starts with, such as `application_name`.
        connect_timeout: how long connecting may take; None when the URL does not say.
        shown: the URL as written, with passwords hidden.
    """

    dsn: str = field(repr=False)
    session: Mapping[str, str]
    connect_timeout: timedelta | None
    shown: str


def parse(url: str, *, application_name: str = "bdr", environment: Mapping[str, str] = os.environ) -> DatabaseUrl:
    """Check a URL; raises ConfigError naming what is wrong, never showing a password."""
    parts = _split(url)
    where = shown(url)
    asked = _parameters(parts, where)
    session = {"application_name": environment.get("PGAPPNAME") or application_name}
    if environment.get("PGOPTIONS"):
        session["options"] = environment["PGOPTIONS"]
    session |= {name: asked[name] for name in _SESSION if name in asked}
    query = urlencode([(name, asked[name]) for name in _DRIVER if name in asked], quote_via=quote)
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path, query, ""))
    # Without an authority urlunsplit writes `postgresql:/database`.
    dsn = dsn if parts.netloc else "postgresql://" + dsn.removeprefix("postgresql:").removeprefix("//")
    timeout = asked.get("connect_timeout") or environment.get("PGCONNECT_TIMEOUT")
    return DatabaseUrl(dsn, session, _seconds(timeout, where), where)


def shown(url: str) -> str:
    """The URL without its passwords, fit for messages and logs; also of a text that is no URL at all."""
    scheme, authority, rest = url.partition("://") if "://" in url else ("", "", url)
    userinfo, separator, place = rest.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    visible = f"{scheme}{authority}{user}{':***' if colon else ''}{separator}{place}"
    return _SECRET.sub(r"\1=***", visible)


def _split(url: str) -> SplitResult:
    where = shown(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"The database URL {where} cannot be read; it should look like {EXAMPLE}.") from error
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{one}://" for one in _SCHEMES)
        raise ConfigError(f"The database URL {where} should begin with one of {known} - for example {EXAMPLE}.")
    _check_authority(parts)
    return parts


def _check_authority(parts: SplitResult) -> None:
    userinfo, _, hosts = parts.netloc.rpartition("@")
    # An unescaped character of a password ends the part before its time, and the rest of it would be shown as a host.
    if parts.fragment or "@" in userinfo or ("@" not in parts.netloc and "@" in parts.path):
        raise ConfigError(
            "The database URL has a '#', '/', '?' or '@' inside the user name or password: write it as %23, %2F, %3F "
            f"or %40, as in {EXAMPLE.replace('password', 'p%40ssword')}."
        )
    for host in hosts.split(","):
        port = re.sub(r"^(\[[^\]]*\]|[^:\[\]]*)(:|$)", "", host)
        if not _PORTS.fullmatch(port) or (port and not 0 < int(port) <= _LAST_PORT):
            # The URL is not shown: without a host, what stands in the port's place may be the password.
            raise ConfigError(f"The database URL's port is no number from 1 to 65535; it should look like {EXAMPLE}.")


def _parameters(parts: SplitResult, where: str) -> dict[str, str]:
    try:
        # libpq leaves a plus sign alone; only a form would read it as a space.
        asked = dict(
            parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError as error:
        raise ConfigError(
            f"The parameters of the database URL {where} should look like ?name=value&name=value."
        ) from error
    for name, value in asked.items():
        _check_parameter(name, value, where)
    if "ssl" in asked:
        asked.setdefault("sslmode", {"true": "require", "false": "disable"}.get(asked["ssl"], asked["ssl"]))
    _check_values(asked, where)
    return asked


def _check_parameter(name: str, value: str, where: str) -> None:
    if name not in _KNOWN:
        near = difflib.get_close_matches(name, _KNOWN, 1, 0.8)
        hint = f"did you mean {near[0]}?" if near else "settings of the server are given as options=-c%20name%3Dvalue."
        raise ConfigError(f"The database URL {where} has the unknown parameter {name!r}; {hint}")
    if name in _PREFERENCES and value == "require":
        raise ConfigError(
            f"The database URL {where} demands {name}=require, which this driver cannot do; leave it out."
        )
    if name in _FILES and not Path(value).is_file():
        raise ConfigError(f"The database URL {where} names the {name} file {value!r}, which is not there.")


def _check_values(asked: Mapping[str, str], where: str) -> None:
    if asked.get("sslmode", "prefer") not in SSL_MODES:
        raise ConfigError(
            f"The database URL {where} has sslmode={asked['sslmode']!r}; it is one of {', '.join(SSL_MODES)}."
        )
    if not _PORTS.fullmatch(asked.get("port", "")):
        raise ConfigError(f"The database URL {where} has a port that is no number from 1 to 65535.")


def _seconds(text: str | None, where: str) -> timedelta | None:
    if text is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise ConfigError(f"The database URL {where} has connect_timeout={text!r}; it is a whole number of seconds.")
    # As in libpq, zero and less mean to wait as long as it takes; bdr's own limit then applies.
    return timedelta(seconds=int(text)) if int(text) > 0 else None
