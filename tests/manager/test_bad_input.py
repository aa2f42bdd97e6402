"""Metadata that is odd, hostile or wrong: kept exactly, or refused with a sentence; nothing is ever half stored."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pydantic
import pytest

import bdr
from bdr import BinaryDataLifecycleManager, BinaryDataMetadata
from tests.guarantees import objects_in, violations
from tests.lifecycle.support import rows

ODD_NAMES = [
    "../../etc/passwd",
    "..",
    "/",
    "a/../b.txt",
    "C:\\Windows\\system32\\cmd.exe",
    "line\nbreak\r\n.txt",
    "\x1b[31mred\x07.log",
    "🦊 emoji 👩‍👩‍👧.png",
    "\u202egnp.exe",
    "שלום.txt",
    "'; DROP TABLE bdr.blob; --.sql",
    "%s %(x)s {0} $1 :name.txt",
    "<script>alert(1)</script>.html",
    " leading and trailing ",
    ".hidden",
    "no-extension.",
    "a.tar.gz",
    "x" * 1000 + ".txt",
    "é" * 1024,
]


async def test_an_odd_name_is_kept_as_it_is_and_never_becomes_part_of_a_path(
    binary: BinaryDataLifecycleManager,
) -> None:
    for name in ODD_NAMES:
        reference = await binary.store_data(b"hello", BinaryDataMetadata(file_name=name))
        assert reference.file_name == name
        assert re.fullmatch(r"[0-9a-v]{26}(\.[a-z0-9]{1,16})?", reference.file_key)
        assert await binary.get_reference(reference.file_key) == reference
        assert json.loads(reference.model_dump_json())["file_name"] == name
        assert await binary.get_data(reference.file_key) == b"hello"
    paths = [path for (path,) in await rows(binary, "SELECT object_path FROM bdr.blob")]
    assert all(re.fullmatch(r"[0-9a-f]{2}/[0-9a-v]{26}", path) for path in paths)
    assert await objects_in(binary.engine.storage("main")) == set(paths)
    assert await violations(binary.engine.database, binary.engine.storages) == []


BAD_METADATA: list[tuple[dict[str, Any], str]] = [
    ({"file_name": "x" * 10_000}, "a file name has 10,000 characters; at most 1,024 are allowed"),
    ({"file_name": "nul\x00.txt"}, "a file name has a NUL character at position 3"),
    ({"file_name": "half \ud83d.txt"}, "half a character"),
    ({"file_name": 7}, "file_name"),
    ({"file_extension": "x" * 2000}, "a file extension has 2,000 characters"),
    ({"directory": "d" * 5000}, "a directory has 5,000 characters"),
    ({"directory": "a\x00b"}, "a directory has a NUL character"),
    *(
        ({"mime_type": mime}, "is not a MIME type; one looks like 'image/png'")
        for mime in ("", "text", "text/", "/html", "text/html\nX: y", "text/html; charset", "☃/☃", "*/*", "<script>/x")
    ),
    ({"mime_type": "a/" + "b" * 300}, "a MIME type has at most 255 characters, this has 302"),
    ({"file_kind": "spreadsheet"}, "file_kind"),
    ({"labels": {"big": "x" * 20_000}}, r"labels are 20,0\d\d bytes as JSON; at most 16,384"),
    ({"labels": {"odd": object()}}, "labels must be what JSON can hold"),
    ({"labels": {"nan": float("nan")}}, "labels must be what JSON can hold"),
    ({"labels": {"nul": "a\x00b"}}, "labels have a NUL character"),
    ({"labels": ["no", "object"]}, "labels"),
    *(({"namespace": name}, "namespace") for name in ("", " a", "a b", "ü", "../x", "a" * 129, "a\x00", "a\n")),
    ({"file_size": -1}, "file_size"),
    ({"file_size": 2**63}, "file_size"),
    ({"last_modified": 10**15}, "last_modified"),
    ({"unknown": 1}, "unknown"),
]


@pytest.mark.parametrize(("metadata", "sentence"), BAD_METADATA)
def test_metadata_that_can_never_be_right_is_refused_with_a_sentence(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=sentence) as raised:
        BinaryDataMetadata(**metadata)
    assert isinstance(raised.value, ValueError)


async def test_labels_and_namespaces_at_their_limits_are_kept(binary: BinaryDataLifecycleManager) -> None:
    labels = {"\u202e🦊": ["\n", {"": None}], "x": "y" * 16_000, "n": 10**30}
    namespace = "a" + "/._:-" * 25 + "zz"
    key = (await binary.store_data(b"", BinaryDataMetadata(labels=labels, namespace=namespace))).file_key
    details = await binary.get_details(key)
    assert (details.labels, details.namespace) == (labels, namespace)


async def several(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_size_that_lies_is_refused_however_the_bytes_come_and_stores_nothing(
    binary: BinaryDataLifecycleManager, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lies") / "file"
    for data in (b"hello", b"x" * 10_000, b"y" * 5_000_000):
        path.write_bytes(data)
        for size in (0, 1, len(data) - 1, len(data) + 1, 2**63 - 1):
            lie = BinaryDataMetadata(file_size=size)
            stores = (
                binary.store_data(data, lie),
                binary.store_file(path, lie),
                binary.store_stream(several(data), lie),
                binary.store_stream(several(data[:3], data[3:]), lie),
            )
            for store in stores:
                with pytest.raises(bdr.InvalidArgument, match=f"file_size says {size} bytes, but there were .*nothing"):
                    await store
            assert await violations(binary.engine.database, binary.engine.storages) == []
    assert await rows(binary, "SELECT count(*) FROM bdr.binary_data_reference") == [(0,)]
    assert await rows(binary, "SELECT count(*) FROM bdr.blob WHERE state <> 'deleting'") == [(0,)]
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_a_stream_that_never_ends_is_stopped_where_it_exceeds_its_size(
    binary: BinaryDataLifecycleManager,
) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 100_000
            yield b"x" * 100_000

    with pytest.raises(bdr.InvalidArgument, match="but there were more"):
        await binary.store_stream(endless(), BinaryDataMetadata(file_size=3_000_000))
    assert given == 3_100_000
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_nothing_at_all_is_a_file_too(
    binary: BinaryDataLifecycleManager, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("empty") / "file"
    path.touch()
    empty = BinaryDataMetadata(file_size=0)
    stores = (
        binary.store_data(b""), binary.store_data(b"", empty), binary.store_file(path), binary.store_file(path, empty),
        binary.store_stream(several()), binary.store_stream(several(b"", b""), empty),
    )  # fmt: skip
    for store in stores:
        reference = await store
        assert reference.file_size == 0
        assert await binary.get_data(reference.file_key) == b""
        assert await binary.data_exists(reference.file_key)
    assert await violations(binary.engine.database, binary.engine.storages) == []


async def test_very_many_empty_or_tiny_chunks_are_no_trouble(binary: BinaryDataLifecycleManager) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20_000):
            yield b""
            yield b"x"

    reference = await binary.store_stream(chunks())
    assert await binary.get_data(reference.file_key) == b"x" * 20_000


async def test_only_bytes_can_be_stored(binary: BinaryDataLifecycleManager) -> None:
    async def stream(*parts: Any) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    wrong: list[Any] = ["text", None, 7, [b"x"], object()]
    for data in wrong:
        stores = (
            binary.store_data(data),
            binary.store_stream(stream(data)),
            binary.store_stream(stream(b"x" * 3_000_000, b"y" * 3_000_000, data)),
        )
        for store in stores:
            with pytest.raises(bdr.InvalidArgument, match=f"Only bytes can be stored, not {type(data).__name__}"):
                await store
            assert await violations(binary.engine.database, binary.engine.storages) == []
    assert await objects_in(binary.engine.storage("main")) == set()


async def test_what_is_no_asynchronous_iterable_is_refused(binary: BinaryDataLifecycleManager) -> None:
    wrong: list[Any] = [[b"x"], b"x", iter([b"x"]), None, several, (b"x" for _ in range(3))]
    for chunks in wrong:
        with pytest.raises(bdr.InvalidArgument, match="takes an asynchronous iterable of bytes"):
            await binary.store_stream(chunks)
    assert await rows(binary, "SELECT count(*) FROM bdr.blob") == [(0,)]


async def test_bytes_of_every_sort_are_stored(binary: BinaryDataLifecycleManager) -> None:
    sorts: list[Any] = [b"hello", bytearray(b"hello"), memoryview(b"--hello--")[2:7]]
    for data in sorts:
        assert await binary.get_data((await binary.store_data(data)).file_key) == b"hello"
        assert await binary.get_data((await binary.store_stream(several(data))).file_key) == b"hello"
