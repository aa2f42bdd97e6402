"""Where a storage lies, written without any secret and always the same way for the same place."""

import re
import uuid
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from bdr.errors import ConfigError
from bdr.settings.secrets import without_secrets
from bdr.storage.services import IN_PROCESS

_DEFAULT_PORTS = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379, "tcp": 6379}
_DEFAULT_REDIS = "127.0.0.1"
# Every region's endpoint of AWS reaches every bucket, so they are one place.
_AWS = re.compile(r"(?:.+\.)?amazonaws\.com")
# What tells two places of one service apart; anything else (keys, tokens, tuning) may differ between engines.
_PLACE = (
    *("connection_string", "account_name", "bucket", "container", "filesystem", "share_name", "name_node"),
    *("repo_type", "repo_id", "repo_name", "revision", "database", "collection", "table", "tree", "index", "segment"),
    *("datadir", "datafile", "namespace_id", "team_id", "email"),
)


def location_of(scheme: str, options: Mapping[str, str]) -> str:
    """The place that an operator with these options has its objects in, such as `s3://host:9000/bucket/prefix`."""
    if scheme in IN_PROCESS:
        return f"{scheme}:{uuid.uuid4().hex}"
    if scheme == "fs":
        return f"fs:{options['root']}"
    root = options.get("root", "").strip("/")
    if scheme == "s3":
        return "s3://" + "/".join(filter(None, (_s3_host(options), options["bucket"], root)))
    if scheme == "redis":
        return "redis://" + "/".join(filter(None, (_redis_hosts(options), options.get("db", "0"), root)))
    return _described(scheme, options, root)


def _described(scheme: str, options: Mapping[str, str], root: str) -> str:
    parts = [f"{name}={_bare(options[name])}" for name in _PLACE if name in options]
    endpoint = [authority(options["endpoint"], "https")] if "endpoint" in options else []
    return f"{scheme}:" + ";".join([*endpoint, *parts, f"root=/{root}"])


def authority(endpoint: str, default_scheme: str) -> str:
    """Host, port and path of an endpoint: no user, no password, no query, no port that goes without saying."""
    url = split_endpoint(endpoint, default_scheme)
    host = url.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{url.port}" if url.port and url.port != _DEFAULT_PORTS.get(url.scheme) else ""
    return f"{host}{port}{url.path.rstrip('/')}"


def split_endpoint(endpoint: str, default_scheme: str) -> SplitResult:
    """The parts of an endpoint with or without a scheme; ConfigError, which does not repeat it, when it is no URL."""
    try:
        url = urlsplit(endpoint if "://" in endpoint else f"{default_scheme}://{endpoint}")
        well_formed = url.port is None or bool(url.hostname)
    except ValueError:
        well_formed = False
    if not well_formed:
        # Not shown: where a URL cannot be read, a password in it cannot be told from the rest.
        raise ConfigError(
            "an endpoint of the storage is not a URL like scheme://host:port; special characters of a user or "
            "password in it must be written as %XX"
        )
    return url


def _s3_host(options: Mapping[str, str]) -> str:
    host = authority(options.get("endpoint", "amazonaws.com"), "https")
    return "amazonaws.com" if _AWS.fullmatch(host) else host


def _redis_hosts(options: Mapping[str, str]) -> str:
    endpoints = options.get("cluster_endpoints") or options.get("endpoint") or _DEFAULT_REDIS
    return ",".join(sorted(authority(one.strip(), "redis") for one in endpoints.split(",")))


def _bare(value: str) -> str:
    # The last "@" ends the user and password; what follows "?" may hold a password as well.
    before, _, after = value.partition("://")
    return f"{before}://{after.rpartition('@')[2].partition('?')[0]}" if after else without_secrets(value)
