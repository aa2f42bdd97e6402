"""`bdr storage ls` and `storage check`: the configured storages, and what the catalog knows of them."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bdr.cli.catalog import catalog
from bdr.cli.findings import Finding, emit_findings
from bdr.cli.options import Given, Json
from bdr.cli.output import emit_json, emit_table
from bdr.errors import BinaryStorageError

if TYPE_CHECKING:
    from uuid import UUID

    from bdr.catalog.database import Database
    from bdr.catalog.storage import KnownStorage
    from bdr.settings import BinaryStorageConfig, Settings
    from bdr.storage.options import ServiceOptions
    from bdr.storage.protocol import StorageMarker

    Known: TypeAlias = Mapping[str, KnownStorage]

_COLUMNS = ("NAME", "TYPE", "LOCATION", "CONFIGURED", "CATALOG")
_MEMORY = "memory"
_FS = "fs"


async def storage_ls(*, as_json: Json = False, common: Given) -> None:
    """List the storages that are configured or that the catalog knows."""
    from bdr.joining import configured_storages

    settings = common.settings()
    async with catalog(settings) as database:
        _, known = await _known_to(database)
    configured = configured_storages(settings)
    rows = [
        _row(name, configured.get(name), known, default=settings.default_storage)
        for name in sorted({*configured, *known})
    ]
    if as_json:
        emit_json([dict(zip(map(str.lower, _COLUMNS), row, strict=True)) for row in rows])
    else:
        emit_table(_COLUMNS, rows)


async def storage_check(*, as_json: Json = False, common: Given) -> int:
    """See whether the configured storages can be reached.

    Each must also be the one that the catalog means. Only the object that marks
    it is read, and nothing is written. The exit code is 1 when any is wrong.
    """
    settings = common.settings()
    async with catalog(settings) as database:
        findings = await check_storages(settings, database)
    return emit_findings(findings, as_json=as_json)


async def check_storages(settings: "Settings", database: "Database") -> Sequence[Finding]:
    """A finding for each configured storage, all asked at once."""
    from bdr.joining import configured_storages

    catalog_id, known = await _known_to(database)
    configured = sorted(configured_storages(settings).items())
    return await asyncio.gather(*(_check(name, config, known, str(catalog_id)) for name, config in configured))


async def _known_to(database: "Database") -> "tuple[UUID, Known]":
    from bdr.catalog import storage

    async with database.reading() as connection:
        return await storage.catalog_id(connection), {one.name: one for one in await storage.known(connection)}


def _row(name: str, config: "BinaryStorageConfig | None", known: "Known", *, default: str) -> tuple[str, ...]:
    from bdr.storage.options import service_options

    if config is None:
        return name, known[name].storage_type, known[name].root, "no", "known"
    service = service_options(config)
    used = "default" if name == default else "yes"
    if service.scheme == _MEMORY:
        return name, service.scheme, _MEMORY, used, "one for each engine"
    state = "another place" if _elsewhere(name, service, known) else "known" if name in known else "not yet"
    return name, service.scheme, service.location, used, state


def _elsewhere(name: str, service: "ServiceOptions", known: "Known") -> str | None:
    """Why the catalog would refuse an engine with this storage; None when it would not."""
    for other in known.values():
        if (other.name == name) != (other.fingerprint == service.fingerprint):
            return (
                f"the catalog knows '{other.name}' as {other.root}; configured here is '{name}' as {service.location}: "
                "correct the configuration, or use another name"
            )
    return None


async def _check(name: str, config: "BinaryStorageConfig", known: "Known", catalog_id: str) -> Finding:
    from bdr.storage.protocol import StorageMarker

    subject = f"storage {name}"
    marked = name in known and known[name].marked
    try:
        return _without_asking(subject, name, config, known) or await _asked(
            subject, config, StorageMarker(catalog_id, name), marked=marked
        )
    except BinaryStorageError as error:
        return Finding.wrong(subject, error)


def _without_asking(subject: str, name: str, config: "BinaryStorageConfig", known: "Known") -> Finding | None:
    from bdr.storage.options import service_options

    service = service_options(config)
    if service.scheme == _MEMORY:
        return Finding.note(subject, "in the memory of each engine: nothing in it outlives its process")
    if (problem := _elsewhere(name, service, known)) is not None:
        return Finding.wrong(subject, problem)
    # Opening it would make the folder, and hide that a share is not mounted.
    if service.scheme == _FS and not Path(service.options["root"]).is_dir():
        return _absent(subject, f"{service.location} is not there", marked=name in known and known[name].marked)
    return None


async def _asked(subject: str, config: "BinaryStorageConfig", expected: "StorageMarker", *, marked: bool) -> Finding:
    from bdr.storage import open_storage

    storage = await open_storage(config, name=expected.storage_name)
    try:
        marker = await storage.read_marker()
    finally:
        await storage.close()
    if marker is None:
        return _absent(subject, f"{storage.location} has no marker object", marked=marked)
    if marker != expected:
        return Finding.wrong(
            subject,
            f"{storage.location} is marked as storage '{marker.storage_name}' of catalog {marker.catalog_id}; this is "
            f"catalog {expected.catalog_id}",
        )
    return Finding.ok(subject, storage.location)


def _absent(subject: str, what: str, *, marked: bool) -> Finding:
    if marked:
        return Finding.wrong(subject, f"{what}, though the catalog has used it: it is not mounted, or was emptied")
    return Finding.note(subject, f"{what} yet; the first engine that connects makes it")
