"""What the tests of fsck share: checking, damaging, and acting at a chosen moment of a check."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import bdr
from bdr.fsck import Finding, FindingKind, FsckReport, Outcome, Result, check, read_plan, repair
from bdr.keys import object_path
from bdr.storage import BinaryDataStorage, ListedObject, ObjectMetadata
from tests.lifecycle.support import change
from tests.reaper.support import path_of

Act = Callable[[], Awaitable[object] | None]
Found = set[tuple[FindingKind, str | None]]


def findings_in(plan: Path) -> list[Finding]:
    """What a plan says is wrong, in its order."""
    return [line for line in read_plan(plan) if isinstance(line, Finding)]


def found_in(plan: Path) -> Found:
    """Kind and path of what a plan says is wrong; nothing may stand there twice."""
    findings = findings_in(plan)
    assert len({(one.kind, one.path, *one.file_keys) for one in findings}) == len(findings)
    return {(one.kind, one.path) for one in findings}


def bytes_of(plan: Path) -> bytes:
    """What is in the file."""
    return plan.read_bytes()


def rewrite(plan: Path, data: bytes) -> None:
    """What a crash, or a person, makes of the file."""
    plan.write_bytes(data)


async def checked(binary: bdr.BinaryDataManager, plan: Path, **options: Any) -> tuple[FsckReport, Found]:
    """A check into a fresh file beside `plan`, and what it found."""
    fresh = plan.with_name(f"{uuid.uuid4().hex}.plan")
    report = await check(binary, fresh, **options)
    fresh.replace(plan)
    return report, found_in(plan)


async def repaired(binary: bdr.BinaryDataManager, plan: Path, **options: Any) -> list[tuple[str, Result]]:
    """Repair; gives back how each item ended, by its kind and path, sorted."""
    outcomes: list[Outcome] = []
    await repair(binary, plan, on_outcome=outcomes.append, **options)
    return sorted((f"{one.finding.kind} {one.finding.path}", one.result) for one in outcomes)


def at_endpoint(config: bdr.BinaryStorageConfig, endpoint: str) -> bdr.BinaryStorageConfig:
    """The same storage of type s3, through a proxy."""
    return config.model_copy(update={"config": config.config | {"endpoint": endpoint}})


async def without_checks(binary: bdr.BinaryDataLifecycleManager) -> None:
    """Let the table hold counts that its constraints forbid, as one that was copied by hand may."""
    for name in ("ref_count", "holder_count"):
        constraint = f"ck_binary_data_reference_{name}"
        await change(binary, f"ALTER TABLE bdr.binary_data_reference DROP CONSTRAINT {constraint}")


class Damage:
    """Does to one storage what disks, people and restored backups do."""

    def __init__(self, binary: bdr.BinaryDataLifecycleManager, name: str = "main") -> None:
        self._binary = binary
        self.storage = binary.engine.storages[binary.engine.default_storage if name == "main" else name]

    async def lose(self, key: str) -> str:
        """The object goes; gives back its path, as the others do."""
        path = await path_of(self._binary, key)
        await self.storage.delete(path)
        return path

    async def replace(self, key: str, data: bytes) -> str:
        """The object has other bytes."""
        path = await self.lose(key)
        await self.storage.store(path, data)
        return path

    async def strand(self, path: str | None = None, data: bytes = b"nobody's") -> str:
        """An object that nobody owns."""
        path = path or object_path(uuid.uuid4())
        await self.storage.store(path, data)
        return path

    async def forget(self, key: str) -> str:
        """The reference goes, its blob stays live."""
        path = await path_of(self._binary, key)
        await change(self._binary, "DELETE FROM bdr.binary_data_reference WHERE file_key = :key", key=key)
        return path


class Watched:
    """A real storage, at whose calls a test does something once, by the folder or path they are about."""

    def __init__(self, storage: BinaryDataStorage) -> None:
        self._storage = storage
        self.before_listing: dict[str, Act] = {}
        self.after_listing: dict[str, Act] = {}
        self.before_stat: dict[str, Act] = {}
        self.after_stat: dict[str, Act] = {}
        self.before_read: dict[str, Act] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def list_objects(self, folder: str = "", *, recursive: bool = True) -> AsyncIterator[ListedObject]:
        await _act(self.before_listing, folder)
        async for found in self._storage.list_objects(folder, recursive=recursive):
            yield found
        await _act(self.after_listing, folder)

    async def get_metadata(self, path: str) -> ObjectMetadata:
        await _act(self.before_stat, path)
        try:
            return await self._storage.get_metadata(path)
        finally:
            await _act(self.after_stat, path)

    async def retrieve_range(self, path: str, offset: int, length: int) -> bytes:
        await _act(self.before_read, path)
        return await self._storage.retrieve_range(path, offset, length)


async def _act(acts: dict[str, Act], at: str) -> None:
    act = acts.pop(at, None)
    waiting = None if act is None else act()
    if waiting is not None:
        await waiting


@contextmanager
def watched(binary: bdr.BinaryDataManager, name: str = "main") -> Iterator[Watched]:
    """The engine's storage, watched; everything that was to be done must have been done at the end."""
    storages = cast("dict[str, Any]", binary.engine.storages)
    real = storages[name]
    storages[name] = watching = Watched(real)
    try:
        yield watching
        listing, stat = (watching.before_listing, watching.after_listing), (watching.before_stat, watching.after_stat)
        assert not any((*listing, *stat, watching.before_read))
    finally:
        storages[name] = real
