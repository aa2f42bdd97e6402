import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bdr import BinaryDataLifecycleManager, BinaryDataMetadata
from tests.guarantees import objects_in
from tests.lifecycle.support import chunks, rows


async def test_what_was_stored_is_read_back_with_its_description(binary: BinaryDataLifecycleManager) -> None:
    reference = await binary.store_data(
        b"%PDF-1.7 hello", BinaryDataMetadata(file_name="reports/a.pdf", mime_type="application/pdf")
    )
    assert reference.model_dump() == {
        "file_key": reference.file_key,
        "mime_kind": "application/pdf",
        "file_size": 14,
        "file_name": "reports/a.pdf",
        "file_kind": "pdf",
        "file_extension": "pdf",
        "directory": "reports",
    }
    assert reference.file_key.endswith(".pdf")
    assert await binary.get_data(reference.file_key) == b"%PDF-1.7 hello"
    assert await binary.get_reference(reference.file_key) == reference
    assert (await binary.get_metadata(reference.file_key)).file_size == 14
    assert await binary.data_exists(reference.file_key)


async def test_store_registers_once_and_publishes_a_live_blob(binary: BinaryDataLifecycleManager) -> None:
    reference = await binary.store_data(b"x" * 1000)
    details = await binary.get_details(reference.file_key)
    assert (details.ref_count, details.pinned) == (1, False)
    assert details.checksum == hashlib.sha256(b"x" * 1000).hexdigest()
    assert await rows(binary, "SELECT state, size, next_attempt_at FROM bdr.blob") == [("live", 1000, None)]
    assert await rows(binary, "SELECT operation_type, status, processed_bytes FROM bdr.operation") == [
        ("store", "succeeded", 1000)
    ]


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 5 * 1024 * 1024])
async def test_every_size_survives_every_way_of_storing_and_reading(
    binary: BinaryDataLifecycleManager, tmp_path: Path, size: int
) -> None:
    data = bytes(i * 31 % 251 for i in range(size)) if size < 10_000 else b"0123456789" * (size // 10)
    path = tmp_path / "some file.bin"
    path.write_bytes(data)
    stored = [
        await binary.store_data(data),
        await binary.store_file(path),
        await binary.store_stream(chunks(data[: size // 3], b"", data[size // 3 :])),
    ]
    for reference in stored:
        assert reference.file_size == len(data)
        assert await binary.get_data(reference.file_key) == data
        async with binary.open(reference.file_key) as reader:
            assert b"".join([part async for part in reader]) == data
    assert stored[1].file_name == str(path)


async def test_an_exception_of_the_source_is_raised_again_and_leaves_nothing(
    binary: BinaryDataLifecycleManager,
) -> None:

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await binary.store_stream(broken())
    assert await objects_in(binary.engine.storage("main")) == set()
    assert await rows(binary, "SELECT state FROM bdr.blob") == [("deleting",)]
    assert await rows(binary, "SELECT count(*) FROM bdr.binary_data_reference") == [(0,)]
    assert await rows(binary, "SELECT status, error FROM bdr.operation") == [("failed", "ZeroDivisionError")]
