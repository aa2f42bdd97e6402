import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bdr
from bdr.storage.paths import MARKER_PATH
from tests.cli.programs import Inside
from tests.fixtures.storages import free_ports


async def test_a_storage_is_listed_and_checked_before_and_after_its_first_use(
    inside: Inside, pdf: Path, fs_config: bdr.BinaryStorageConfig
) -> None:
    place = f"fs:{fs_config.root}"
    assert (await inside("storage", "ls")).cells == [["main", "fs", place, "default", "not yet"]]
    unused = await inside("storage", "check")
    assert (unused.code, unused.cells[0][:2]) == (0, ["storage main", "note"])
    assert _below(fs_config.root) is None
    await inside("put", pdf)
    assert (await inside("storage", "check")).cells == [["storage main", "ok", place]]


async def test_a_storage_in_memory_and_one_that_only_the_catalog_knows_are_listed_as_such(
    inside: Inside, key: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    memory = {"BDR_STORAGES__MEM__STORAGE_TYPE": "memory"}
    assert (await inside("storage", "ls", "--json", **memory)).json == [
        {
            "name": "main",
            "type": "fs",
            "location": f"fs:{fs_config.root}",
            "configured": "default",
            "catalog": "known",
        },
        {
            "name": "mem",
            "type": "memory",
            "location": "memory",
            "configured": "yes",
            "catalog": "one for each engine",
        },
    ]
    checked = (await inside("storage", "check", "--json", **memory)).json
    assert [(one["subject"], one["state"]) for one in checked] == [("storage main", "ok"), ("storage mem", "note")]
    renamed = {"BDR_DEFAULT_STORAGE": "other", "BDR_STORAGE__ROOT": fs_config.root + "-2"}
    listed = (await inside("storage", "ls", **renamed)).cells
    assert [(cells[0], cells[3]) for cells in listed] == [("main", "no"), ("other", "default")]


def _below(root: str) -> list[Path] | None:
    return sorted(Path(root).rglob("*")) if Path(root).exists() else None


def _emptied(root: Path) -> None:
    (root / MARKER_PATH).unlink()


def _gone(root: Path) -> None:
    shutil.rmtree(root)


def _of_another_catalog(root: Path) -> None:
    (root / MARKER_PATH).write_text('{"catalog_id": "another", "storage_name": "main"}')


def _garbled(root: Path) -> None:
    (root / MARKER_PATH).write_text("not bdr's")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_emptied, "has no marker object, though the catalog has used it: it is not mounted, or was emptied"),
        (_gone, "is not there, though the catalog has used it: it is not mounted, or was emptied"),
        (_of_another_catalog, "is marked as storage 'main' of catalog another"),
        (_garbled, "is not one that bdr wrote"),
    ],
)
async def test_a_storage_that_is_not_the_right_one_is_told_of(
    inside: Inside,
    key: str,
    fs_config: bdr.BinaryStorageConfig,
    tmp_path: Path,
    harm: Callable[[Path], None],
    sentence: str,
) -> None:
    root = Path(fs_config.root)
    shutil.copytree(root, tmp_path / "kept")
    harm(root)
    left = _below(fs_config.root)
    checked = await inside("storage", "check")
    assert (checked.code, checked.cells[0][:2]) == (1, ["storage main", "wrong"])
    assert sentence in checked.cells[0][2]
    assert _below(fs_config.root) == left
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", root)


async def test_a_storage_that_is_configured_wrongly_or_cannot_be_reached_is_told_of(
    inside: Inside, key: str, fs_config: bdr.BinaryStorageConfig
) -> None:
    elsewhere = {"BDR_STORAGE__ROOT": fs_config.root + "-2"}
    moved = await inside("storage", "check", **elsewhere)
    assert moved.code == 1
    assert f"the catalog knows 'main' as fs:{fs_config.root}; configured here is 'main' as" in moved.text
    assert (await inside("storage", "ls", **elsewhere)).cells[0][4] == "another place"
    away = {
        "BDR_STORAGES__AWAY__STORAGE_TYPE": "redis",
        "BDR_STORAGES__AWAY__CONFIG__ENDPOINT": f"redis://:hidden@127.0.0.1:{free_ports(1)[0]}",
        "BDR_STORAGES__AWAY__TIMEOUT": "300ms",
        "BDR_STORAGES__TYPO__STORAGE_TYPE": "s3",
        "BDR_STORAGES__TYPO__CONFIG__BUKKET": "b",
    }
    checked = await inside("storage", "check", **away)
    assert checked.code == 1
    states = {cells[0]: cells[1:] for cells in checked.cells}
    assert states["storage main"][0] == "ok"
    assert states["storage away"][0] == states["storage typo"][0] == "wrong"
    assert "check that it runs, is mounted and can be reached" in states["storage away"][1]
    assert "bukket" in states["storage typo"][1]
    assert "hidden" not in checked.text + checked.errors
