"""What a file is, from its bytes and its name: real documents, stored in each way."""

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bdr import BinaryDataLifecycleManager, BinaryDataMetadata
from scripts.documents import make_documents
from tests.fixtures.engines import Connect
from tests.lifecycle.support import chunks

OFFICE = "application/vnd.openxmlformats-officedocument."
# MIME type and kind by the bytes alone; with a name the same, but for what only a name can tell.
DOCUMENTS = {
    "report.pdf": ("application/pdf", "pdf"),
    "chart.png": ("image/png", "image"),
    "photo.jpg": ("image/jpeg", "image"),
    "orders.json": ("application/json", "json"),
    "orders.csv": ("text/csv", "text"),
    "page.html": ("text/html", "html"),
    "notes.txt": ("text/plain", "text"),
    "orders.xlsx": (f"{OFFICE}spreadsheetml.sheet", "excel"),
    "letter.docx": (f"{OFFICE}wordprocessingml.document", "word"),
    "slides.pptx": (f"{OFFICE}presentationml.presentation", "ppt"),
    "tone.wav": ("audio/x-wav", "audio"),
    "clip.avi": ("video/x-msvideo", "video"),
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_documents(tmp_path_factory.mktemp("documents"))


async def test_real_documents_are_known_by_file_by_bytes_and_by_stream(
    binary: BinaryDataLifecycleManager, documents: list[Path]
) -> None:
    assert {path.name for path in documents} == DOCUMENTS.keys()
    for path in documents:
        data = path.read_bytes()
        by_file = await binary.store_file(path)
        assert (by_file.mime_kind, by_file.file_kind) == DOCUMENTS[path.name]
        assert (by_file.file_name, by_file.directory) == (str(path), str(path.parent))
        assert by_file.file_extension == path.suffix[1:]
        assert by_file.file_key.endswith(path.suffix)
        for nameless in (await binary.store_data(data), await binary.store_stream(chunks(data[:5000], data[5000:]))):
            assert (nameless.mime_kind, nameless.file_kind) == DOCUMENTS[path.name]
            assert (nameless.file_name, nameless.directory, nameless.file_extension) == (None, None, None)
            assert "." not in nameless.file_key
        assert await binary.get_data(by_file.file_key) == data


SAID: list[tuple[dict[str, Any], bytes, str, str | None]] = [
    ({"file_name": "a.md"}, b"# Title\n", "text/markdown", "text"),
    ({"file_name": "a.html"}, b"<!DOCTYPE html><p>", "text/html", "html"),
    ({"mime_type": "text/html; charset=utf-8"}, b"hello", "text/html; charset=utf-8", "html"),
    ({"mime_type": "application/vnd.ms-powerpoint"}, b"\x00", "application/vnd.ms-powerpoint", "ppt"),
    ({"mime_type": "application/x-unknown"}, b"hello", "application/x-unknown", None),
    ({"mime_type": "application/x-unknown", "file_kind": "pdf"}, b"hello", "application/x-unknown", "pdf"),
    ({"file_name": "picture.png"}, b"this is no picture", "text/plain", "text"),
    ({}, b"\x00\x01\x02\x03", "application/octet-stream", None),
    ({}, b"", "application/octet-stream", None),
    ({"file_name": "empty.txt"}, b"", "text/plain", "text"),
]


async def test_what_the_caller_says_comes_first_and_what_nobody_knows_is_null(
    binary: BinaryDataLifecycleManager,
) -> None:
    for metadata, data, mime, kind in SAID:
        reference = await binary.store_data(data, BinaryDataMetadata(**metadata))
        assert (reference.mime_kind, reference.file_kind) == (mime, kind), metadata


@pytest.mark.parametrize("size", [8191, 8192, 8193])
async def test_a_file_is_of_one_type_however_it_is_stored(
    binary: BinaryDataLifecycleManager, tmp_path: Path, size: int
) -> None:
    data = b'["' + b"x" * (size - 4) + b'"]'
    path = tmp_path / "data"
    path.write_bytes(data)
    stored = [
        await binary.store_data(data),
        await binary.store_file(path),
        await binary.store_stream(chunks(data[:1], data[1:], b"")),
        await binary.store_stream(chunks(*(data[at : at + 1] for at in range(size)))),
    ]
    assert [reference.mime_kind for reference in stored] == ["application/json"] * 4


async def test_a_file_s_time_is_kept_and_metadata_wins_over_the_file_s_own(
    binary: BinaryDataLifecycleManager, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    plain = await binary.get_metadata((await binary.store_file(path)).file_key)
    assert (plain.last_modified, plain.file_name) == (1_700_000_000, str(path))
    said = BinaryDataMetadata(
        file_name="in/other.csv", last_modified=-5, namespace="n/1", labels={"node": {"id": 7}}, directory="elsewhere"
    )
    kept = await binary.get_details((await binary.store_file(str(path), said)).file_key)
    assert (kept.reference.file_name, kept.reference.file_extension, kept.reference.directory) == (
        "in/other.csv", "csv", "elsewhere",
    )  # fmt: skip
    assert kept.last_modified == datetime.fromtimestamp(-5, UTC)
    assert (kept.namespace, kept.labels) == ("n/1", {"node": {"id": 7}})


async def test_a_file_whose_time_no_calendar_holds_has_none(binary: BinaryDataLifecycleManager) -> None:
    # In memory, for file systems on a disk do not hold such times either.
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        os.utime(file.name, (10**12, 10**12))
        assert (await binary.get_metadata((await binary.store_file(file.name)).file_key)).last_modified is None


async def test_a_name_that_is_no_text_or_too_long_is_kept_as_far_as_it_can_be(
    binary: BinaryDataLifecycleManager, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.txt")
    odd.write_text("hello")
    assert (await binary.store_file(odd)).file_name == f"{tmp_path}/caf\ufffd.txt"
    deep = tmp_path.joinpath(*["d" * 200] * 6)
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text("hello")
    assert (await binary.store_file(deep / "a.txt")).file_name == "a.txt"


async def test_the_configured_namespace_is_that_of_files_without_one(connect: Connect) -> None:
    binary = await connect(namespace="tenant-7")
    key = (await binary.store_data(b"hello")).file_key
    assert [one.reference.file_key for one in await binary.list_references(namespace="tenant-7")] == [key]
    assert await binary.list_references(namespace="default") == []
