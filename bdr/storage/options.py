"""From a `BinaryStorageConfig` to what OpenDAL is given, with every key checked and every spelling settled."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bdr.errors import ConfigError
from bdr.settings import BinaryStorageConfig
from bdr.storage.location import location_of, split_endpoint
from bdr.storage.services import canonical_scheme, check_option, takes_option

MiB = 1024 * 1024
PART_SIZE = 8 * MiB
_SIZE_OPTION = "max_object_size"
# Redis holds no longer value; S3 takes no more than 10,000 parts of one upload.
_LARGEST = {"redis": 512 * MiB, "s3": 10_000 * PART_SIZE}

_SHORT_KEYS = {"access_key": "access_key_id", "secret_key": "secret_access_key"}
_SPELLINGS = {
    "s3": _SHORT_KEYS,
    "obs": _SHORT_KEYS,
    "tos": _SHORT_KEYS,
    "oss": {"access_key": "access_key_id", "secret_key": "access_key_secret"},
}


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """One operator to build.

    Attributes:
        scheme: OpenDAL's name of the service.
        options: its keyword arguments; may hold secrets, so it is in no repr.
        location: where it lies, without secrets.
        max_object_size: bytes; None when the service sets no limit that matters.
    """

    scheme: str
    options: Mapping[str, str] = field(repr=False)
    location: str
    max_object_size: int | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the location, in hex."""
        return hashlib.sha256(self.location.encode()).hexdigest()


def service_options(config: BinaryStorageConfig) -> ServiceOptions:
    """What to build for `config`; ConfigError names the option that is wrong."""
    scheme = canonical_scheme(config.storage_type)
    given = dict(config.config)
    largest = _largest(scheme, given.pop(_SIZE_OPTION, None))
    options = _completed(scheme, config.root, _renamed(scheme, given))
    return ServiceOptions(scheme, options, location_of(scheme, options), largest)


def _largest(scheme: str, given: object) -> int | None:
    if given is None:
        return _LARGEST.get(scheme)
    try:
        size = int(str(given))
    except ValueError:
        size = 0
    if size < 1:
        raise ConfigError(f"the option {_SIZE_OPTION!r} must be a number of bytes, at least 1, not {given!r}")
    return size


def _renamed(scheme: str, given: Mapping[str, Any]) -> dict[str, str]:
    spellings = _SPELLINGS.get(scheme, {})
    options: dict[str, str] = {}
    for name, value in given.items():
        option = spellings.get(name, name)
        if option == "root":
            raise ConfigError("`root` is a setting of the storage itself, not one of its options: move it up one level")
        check_option(scheme, option, frozenset({_SIZE_OPTION, *spellings}))
        if option in options:
            raise ConfigError(f"{name!r} and {option!r} are two names of one option of {scheme}: give one of them")
        options[option] = _text(name, value)
    return options


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Path):
        return str(value)
    raise ConfigError(f"the option {name!r} must be text, a number or a boolean, not {type(value).__name__}")


def _completed(scheme: str, root: str, options: dict[str, str]) -> dict[str, str]:
    if scheme == "fs":
        return options | {"root": _folder(root)}
    if takes_option(scheme, "bucket") and "bucket" not in options:
        options["bucket"], _, root = root.strip("/").partition("/")
        _require_bucket(scheme, options["bucket"])
    if root and not takes_option(scheme, "root"):
        raise ConfigError(f"a storage of type {scheme} has no root, but {root!r} is given: leave it empty")
    if scheme == "s3":
        options = _s3(options)
    elif scheme == "redis":
        options = _redis(options)
    return options | {"root": "/" + _prefix(root)}


def _folder(root: str) -> str:
    if not root:
        raise ConfigError("a storage of type fs needs `root`, the folder that its objects lie in")
    if "\0" in root:
        raise ConfigError(f"the storage's root {root!r} holds a NUL character")
    # Links are followed once, here: what the engine wrote to stays the same place when a link is turned elsewhere.
    # Not pathlib: it raises RuntimeError for a loop of links or an unknown user, which the first use tells better.
    return os.path.realpath(os.path.expanduser(root))  # noqa: PTH111  # see above


def _prefix(root: str) -> str:
    segments = [segment for segment in root.split("/") if segment]
    for segment in segments:
        # HTTP clients resolve dots after the request was signed, and OpenDAL strips blanks: both change the place.
        if segment in {".", ".."} or segment != segment.strip() or not segment.isprintable():
            raise ConfigError(f"the storage's root {root!r} has the segment {segment!r}: use plain names between '/'")
    return "/".join(segments)


def _require_bucket(scheme: str, bucket: str) -> None:
    if not bucket:
        raise ConfigError(f"a storage of type {scheme} needs the option 'bucket', or the bucket's name as its `root`")


def _s3(options: dict[str, str]) -> dict[str, str]:
    keys = [name in options for name in _SHORT_KEYS.values()]
    if any(keys) and not all(keys):
        raise ConfigError(
            "a storage of type s3 has one of the options 'access_key' and 'secret_key': give both or none"
        )
    if "endpoint" in options:
        options.setdefault("region", "us-east-1")
    if all(keys):
        # Else the environment's credentials, meant for something else, could win over those that were given.
        options.setdefault("disable_config_load", "true")
    return options


def _redis(options: dict[str, str]) -> dict[str, str]:
    if "endpoint" in options:
        options = _redis_url(options)
    if not options.setdefault("db", "0").isdecimal():
        raise ConfigError(f"the database of a storage of type redis must be a number, not {options['db']!r}")
    return options


def _redis_url(options: dict[str, str]) -> dict[str, str]:
    url = split_endpoint(options["endpoint"], "redis")
    if url.scheme not in {"redis", "rediss", "tcp"}:
        raise ConfigError(
            f"the endpoint of a storage of type redis is redis://HOST:PORT or rediss://…, not {url.scheme}:"
        )
    if url.query or url.fragment:
        raise ConfigError("the option 'endpoint' of a storage of type redis takes no '?' and no '#': use its options")
    # OpenDAL would take neither the database nor the password from the URL, and say nothing.
    in_url = {
        "db": url.path.strip("/"),
        "username": unquote(url.username or ""),
        "password": unquote(url.password or ""),
    }
    for name, value in in_url.items():
        if value and options.setdefault(name, value) != value:
            raise ConfigError(f"the option {name!r} and the one in the endpoint's URL differ: give one of them")
    return options | {"endpoint": f"{url.scheme}://{url.netloc.rpartition('@')[2]}"}
