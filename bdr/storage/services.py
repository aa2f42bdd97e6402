"""What the services compiled into OpenDAL are called, and which options each of them takes."""

import difflib
import re
from functools import cache

import opendal.config

from bdr.errors import ConfigError

# OpenDAL registers these second names too; one place must not have two spellings of its type.
_ALIASES = {"cosn": "cos", "file": "fs", "https": "http", "huggingface": "hf"}
_SCHEME = re.compile(r"Literal\[['\"]([a-z0-9-]+)['\"]\]")

# They live in this process only, and no two operators share anything.
IN_PROCESS = frozenset({"dashmap", "memory", "mini-moka", "moka"})

_HARMFUL = {
    "atomic_write_dir": "its temporary files belong to nobody, and two writers of one path would both succeed",
    "default_ttl": "objects would vanish while the catalog still refers to them; use the retention settings",
    "time_to_idle": "objects would vanish while the catalog still refers to them; use the retention settings",
    "time_to_live": "objects would vanish while the catalog still refers to them; use the retention settings",
}


def canonical_scheme(storage_type: str) -> str:
    """OpenDAL's own name of a service; ConfigError when there is no such service."""
    scheme = storage_type.strip().lower().replace("_", "-")
    scheme = _ALIASES.get(scheme, scheme)
    if scheme not in _known_options():
        raise ConfigError(f"unknown storage type {storage_type!r}{_hint(scheme, _known_options())}")
    return scheme


def takes_option(scheme: str, option: str) -> bool:
    """Whether OpenDAL's service `scheme` has an option of this name."""
    return option in _known_options()[scheme]


def check_option(scheme: str, option: str, ours: frozenset[str]) -> None:
    """ConfigError for an option that the service does not have (OpenDAL would ignore it) or that breaks a guarantee.

    `ours` are further names that bdr itself understands there.
    """
    known = _known_options()[scheme]
    if option not in known:
        raise ConfigError(f"a storage of type {scheme} has no option {option!r}{_hint(option, known | ours)}")
    if option in _HARMFUL:
        raise ConfigError(f"the option {option!r} of a storage of type {scheme} is not allowed: {_HARMFUL[option]}")


@cache
def _known_options() -> dict[str, frozenset[str]]:
    # The generated TypedDicts are the only place where the binding names a service's options.
    services = {}
    for declared in vars(opendal.config).values():
        annotations = getattr(declared, "__annotations__", {})
        scheme = _SCHEME.search(str(annotations.get("scheme", "")))
        if scheme:
            services[scheme[1]] = frozenset(annotations) - {"scheme"}
    return services


def _hint(word: str, known: "frozenset[str] | dict[str, frozenset[str]]") -> str:
    close = difflib.get_close_matches(word, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{meant} Known: {', '.join(sorted(set(known) - {'root'})) or 'none'}"
