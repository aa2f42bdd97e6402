"""The demo's own checks: silent about a catalog and a storage that are right, and clear about each way to be wrong."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

import bdr
from scripts.demo_run import demo, proof
from scripts.demo_run.proof import MARKER, Place
from tests.fixtures.engines import Connect

MOMENT = timedelta(milliseconds=1)
FILES = {"one.txt": b"first", "two.bin": b"\x00" * 1000}
HELD = "SELECT file_key FROM bdr.binary_data_reference WHERE file_name = 'one.txt'"
BLOB = f"SELECT blob_id FROM bdr.binary_data_reference WHERE file_key = ({HELD})"
PATH = f"SELECT object_path FROM bdr.blob WHERE blob_id = ({BLOB})"

QUARANTINE = f"""
    WITH blob AS ({BLOB}), gone AS (DELETE FROM bdr.binary_data_reference WHERE file_key = ({HELD}))
    UPDATE bdr.blob SET state = 'quarantined', last_error = 'Disk.' WHERE blob_id = (SELECT blob_id FROM blob)
"""
REAPED_TWICE = """
    INSERT INTO bdr.operation
    SELECT (jsonb_populate_record(o, jsonb_build_object('operation_id', gen_random_uuid()))).*
    FROM bdr.operation o WHERE operation_type = 'reap' LIMIT 1
"""

Spoil = Callable[[Path], object]


@pytest.fixture
async def place(database_url: str, fs_config: bdr.BinaryStorageConfig) -> AsyncIterator[Place]:
    catalog = await asyncpg.connect(database_url)
    yield Place(catalog, Path(fs_config.root))
    await catalog.close()


@pytest.fixture
async def held(connect: Connect, place: Place) -> list[str]:
    """The keys of two files that one engine has stored, with nothing wrong."""
    binary = await connect(lifecycle=bdr.LifecycleCleanupConfig(zero_ref_retention=MOMENT))
    references = [await binary.store_data(data, bdr.BinaryDataMetadata(file_name=name)) for name, data in FILES.items()]
    assert await wrong_while_held(place) == []
    return [reference.file_key for reference in references]


@pytest.fixture
async def reaped(database_url: str, fs_config: bdr.BinaryStorageConfig, place: Place) -> list[int]:
    """The process that has stored, released and reaped two files and left, with nothing wrong."""
    lifecycle = bdr.LifecycleCleanupConfig(zero_ref_retention=MOMENT)
    async with bdr.connect(database_url, fs_config, lifecycle, instance=bdr.InstanceConfig(name="reaper 1")) as binary:
        for name, data in FILES.items():
            reference = await binary.store_data(data, bdr.BinaryDataMetadata(file_name=name))
            await binary.release_reference(reference.file_key)
        assert await proof.wrong_when_released(place, files=2) == []
        while await proof.left(place):
            await binary.reap()
        assert await proof.wrong_when_released(place, files=2) == []
    pids = [await place.catalog.fetchval("SELECT pid FROM bdr.engine_instance")]
    assert await proof.wrong_at_the_end(place, files=2, pids=pids) == []
    assert await proof.reaped_by(place) == {"reaper 1": 2}
    return pids


async def wrong_while_held(place: Place) -> list[str]:
    return await proof.wrong_while_held(place, files=2, size=1005, count=1)


@pytest.mark.parametrize(
    ("sql", "sentences"),
    [
        (
            f"UPDATE bdr.binary_data_reference SET ref_count = 2 WHERE file_key = ({HELD})",
            ["The count of {key} (one.txt) is 2, not 1."],
        ),
        (
            f"DELETE FROM bdr.binary_data_reference WHERE file_key = ({HELD})",
            ["References in the catalog: 1, not 2.", "Bytes in the catalog: 1000, not 1005."],
        ),
        (
            QUARANTINE,
            [
                "References in the catalog: 1, not 2.",
                "Bytes in the catalog: 1000, not 1005.",
                "The blob {path} is quarantined, not live. Disk.",
            ],
        ),
        (
            f"UPDATE bdr.blob SET size = 6 WHERE blob_id = ({BLOB})",
            ["The object {path} has 5 bytes; the catalog says 6."],
        ),
    ],
    ids=["count", "reference", "blob", "size"],
)
async def test_a_wrong_row_is_named_while_files_are_held(
    held: list[str], place: Place, sql: str, sentences: list[str]
) -> None:
    path = await place.catalog.fetchval(PATH)
    await place.catalog.execute(sql)
    assert await wrong_while_held(place) == [one.format(key=held[0], path=path) for one in sentences]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (Path.unlink, "The object {path} is gone; the catalog has it."),
        (lambda path: path.write_bytes(b"x"), "The object {path} has 1 bytes; the catalog says 5."),
        (lambda path: path.with_name("alien").touch(), "The object {parent}/alien is in no row of the catalog."),
    ],
    ids=["gone", "shorter", "alien"],
)
async def test_a_wrong_object_is_named_while_files_are_held(
    held: list[str], place: Place, spoil: Spoil, sentence: str
) -> None:
    path = Path(await place.catalog.fetchval(PATH))
    spoil(place.objects / path)
    assert await wrong_while_held(place) == [sentence.format(path=path, parent=path.parent)]


async def test_a_count_that_is_not_zero_is_named_when_all_is_released(held: list[str], place: Place) -> None:
    await place.catalog.execute(f"UPDATE bdr.binary_data_reference SET ref_count = 0 WHERE file_key <> ({HELD})")
    assert await proof.wrong_when_released(place, files=2) == [f"The count of {held[0]} (one.txt) is 1, not 0."]


async def test_a_reference_that_no_reaper_took_is_missed_when_all_is_released(held: list[str], place: Place) -> None:
    await place.catalog.execute("UPDATE bdr.binary_data_reference SET ref_count = 0")
    await place.catalog.execute(f"DELETE FROM bdr.binary_data_reference WHERE file_key = ({HELD})")
    assert await proof.wrong_when_released(place, files=2) == ["Files released: 1, not 2."]


async def test_what_is_left_at_the_end_is_named(held: list[str], place: Place) -> None:
    pids = [await place.catalog.fetchval("SELECT pid FROM bdr.engine_instance")]
    assert await proof.left(place) == 2
    assert await proof.wrong_at_the_end(place, files=2, pids=pids) == [
        "References left: 2, not 0.",
        "Blobs left: 2, not 0.",
        "Files reaped: 0, not 2.",
        "Records of a reap: 0, not 2.",
        "Files reaped because nobody referred to them: 0, not 2.",
        "Processes that have not left it: 1, not 0.",
    ]


@pytest.mark.parametrize(
    ("sql", "sentences"),
    [
        (
            REAPED_TWICE,
            ["Records of a reap: 3, not 2.", "Files reaped because nobody referred to them: 3, not 2."],
        ),
        (
            "UPDATE bdr.operation SET detail = '{\"rule\": \"max_retention\"}' WHERE operation_type = 'reap'",
            ["Files reaped because nobody referred to them: 0, not 2."],
        ),
        ("UPDATE bdr.engine_instance SET pid = 1", ["Processes that joined the catalog: [1], not {pids}."]),
        ("UPDATE bdr.engine_instance SET stopped_at = NULL", ["Processes that have not left it: 1, not 0."]),
    ],
    ids=["reaped twice", "rule", "process", "alive"],
)
async def test_a_wrong_row_is_named_at_the_end(reaped: list[int], place: Place, sql: str, sentences: list[str]) -> None:
    await place.catalog.execute(sql)
    found = await proof.wrong_at_the_end(place, files=2, pids=reaped)
    assert found == [one.format(pids=reaped) for one in sentences]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "alien").touch(), "The object alien is in no row of the catalog."),
        (lambda folder: (folder / MARKER).unlink(), "The storage has lost its marker .bdr-storage."),
    ],
    ids=["object", "marker"],
)
async def test_a_wrong_storage_is_named_at_the_end(
    reaped: list[int], place: Place, spoil: Spoil, sentence: str
) -> None:
    spoil(place.objects)
    assert await proof.wrong_at_the_end(place, files=2, pids=reaped) == [sentence]


def test_of_many_cases_alike_the_first_ones_are_named() -> None:
    stored = [demo.Stored({"file_key": str(number), "file_name": f"{number}.txt"}, "aa") for number in range(9)]
    right = [{"file_key": str(number), "counts": [2], "sha256": "aa"} for number in range(9)]
    assert demo.wrong_answers(stored, right, counts=[2]) == []
    wrong = [answer | {"counts": [3]} for answer in right]
    assert demo.wrong_answers(stored, wrong, counts=[2]) == [
        "The counts of 0.txt were [3], not [2].",
        "The counts of 1.txt were [3], not [2].",
        "The counts of 2.txt were [3], not [2].",
        "... and 6 more like this",
    ]


def test_bytes_that_are_not_the_originals_are_named() -> None:
    stored = [demo.Stored({"file_key": "k", "file_name": "a.txt"}, "aa")]
    answers = [{"file_key": "k", "counts": [2], "sha256": "bb"}]
    assert demo.wrong_answers(stored, answers, counts=[2]) == ["a.txt came back with SHA-256 bb; the original has aa."]
