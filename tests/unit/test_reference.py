import json
import math
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bdr.reference import BinaryDataMetadata, BinaryDataReference, BinaryFileKind, split_name

# Whatever Unicode has, but for what PostgreSQL cannot hold.
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60)
NAMES = st.text(st.sampled_from("ab.é/\\:C \n\u202e🙂\t"), max_size=30) | TEXTS
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)

REFERENCES = st.builds(
    BinaryDataReference,
    file_key=TEXTS,
    mime_kind=TEXTS,
    file_size=st.integers(0, 2**63 - 1),
    file_name=st.none() | TEXTS,
    file_kind=st.none() | st.sampled_from(BinaryFileKind),
    file_extension=st.none() | TEXTS,
    directory=st.none() | TEXTS,
)


@pytest.mark.parametrize(
    ("mime", "kind"),
    [
        ("text/plain", "text"),
        ("text/csv", "text"),
        ("text/html", "html"),
        ("TEXT/HTML; charset=utf-8", "html"),
        ("application/xhtml+xml", "html"),
        ("application/json", "json"),
        ("application/geo+json", "json"),
        ("image/png", "image"),
        ("image/svg+xml", "image"),
        ("video/mp4", "video"),
        ("audio/mpeg", "audio"),
        ("application/pdf", "pdf"),
        ("application/vnd.ms-excel", "excel"),
        ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "excel"),
        ("application/vnd.ms-excel.sheet.macroEnabled.12", "excel"),
        ("application/vnd.oasis.opendocument.spreadsheet", "excel"),
        ("application/msword", "word"),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "word"),
        ("application/vnd.ms-word.document.macroEnabled.12", "word"),
        ("application/vnd.oasis.opendocument.text", "word"),
        ("application/rtf", "word"),
        ("application/vnd.ms-powerpoint", "ppt"),
        ("application/vnd.openxmlformats-officedocument.presentationml.presentation", "ppt"),
        ("application/vnd.oasis.opendocument.presentation", "ppt"),
        ("application/vnd.oasis.opendocument.graphics", None),
        ("application/vnd.openxmlformats-officedocument.drawing", None),
        ("application/octet-stream", None),
        ("application/zip", None),
        ("application/x-textual", None),
        ("texts/plain", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_kinds(mime: str, kind: str | None) -> None:
    assert BinaryFileKind.of_mime(mime) == kind


@given(TEXTS)
def test_no_text_makes_kinds_fail(mime: str) -> None:
    assert BinaryFileKind.of_mime(mime) in {None, *BinaryFileKind}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.pdf", ("a.pdf", "pdf", None)),
        ("a.PDF", ("a.PDF", "PDF", None)),
        ("dir/sub/a.tar.gz", ("a.tar.gz", "gz", "dir/sub")),
        ("/a", ("a", None, "/")),
        ("/a/b.c", ("b.c", "c", "/a")),
        ("../../etc/passwd", ("passwd", None, "../../etc")),
        ("C:\\Users\\x\\a.docx", ("a.docx", "docx", "C:\\Users\\x")),
        ("C:\\a.docx", ("a.docx", "docx", "C:")),
        ("C:a.docx", ("a.docx", "docx", "C:")),
        ("\\\\server\\share\\a.b", ("a.b", "b", "\\\\server\\share")),
        ("mixed\\way/a.b", ("a.b", "b", "mixed\\way")),
        ("a/b/", ("b", None, "a")),
        (".bashrc", (".bashrc", None, None)),
        ("x/.hidden.tar", (".hidden.tar", "tar", "x")),
        ("..foo", ("..foo", None, None)),
        ("a.", ("a.", None, None)),
        ("a.b..", ("a.b..", None, None)),
        ("no extension", ("no extension", None, None)),
        ("🙂.p🙂g", ("🙂.p🙂g", "p🙂g", None)),
        ("a\u202egnp.exe", ("a\u202egnp.exe", "exe", None)),
        ("two\nlines.txt", ("two\nlines.txt", "txt", None)),
        ("\x1b[31m.txt", ("\x1b[31m.txt", "txt", None)),
        ("", ("", None, None)),
        ("/", ("", None, "/")),
        ("..", ("", None, "..")),
        ("a/..", ("", None, "a/..")),
        ("C:\\", ("", None, "C:\\")),
        ("n" * 1024, ("n" * 1024, None, None)),
    ],
)
def test_names_taken_apart(name: str, parts: tuple[str, str | None, str | None]) -> None:
    assert split_name(name) == parts


@given(NAMES)
def test_a_base_name_never_leads_anywhere_else(name: str) -> None:
    base, extension, directory = split_name(name)
    assert base not in {".", ".."}
    assert not set(base) & {"/", "\\"}
    assert base in name
    assert extension is None or (extension and base.endswith("." + extension))
    assert directory is None or name.startswith(directory)


@given(st.text(st.sampled_from("ab. é"), max_size=12))
def test_plain_names_are_taken_apart_as_python_does(base: str) -> None:
    expected = PurePosixPath("dir") / base
    if expected.name != base or base in {"dir", ".."}:
        return
    parts = split_name(f"dir/{base}")
    assert (parts.base, parts.directory) == (expected.name, "dir")
    if not base.strip(" ").startswith("."):
        assert parts.extension == (expected.suffix[1:] or None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a\x00.pdf", "NUL character at position 1"),
        ("a\ud83d.pdf", "surrogate"),
        ("n" * 1025, "1,025 characters; at most 1,024"),
        ("n" * 10_000, "10,000 characters; at most 1,024"),
    ],
)
def test_names_that_cannot_be_kept(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        split_name(name)
    with pytest.raises(ValueError, match=sentence):
        BinaryDataMetadata(file_name=name)


def test_a_reference_in_json_has_seven_fields_in_order_and_keeps_nulls() -> None:
    reference = BinaryDataReference(file_key="k", mime_kind="application/pdf", file_size=3)
    assert reference.model_dump_json() == (
        '{"file_key":"k","mime_kind":"application/pdf","file_size":3,"file_name":null,"file_kind":null,'
        '"file_extension":null,"directory":null}'
    )
    whole = BinaryDataReference(
        file_key="k.pdf", mime_kind="application/pdf", file_size=3, file_name="a/ä.pdf", file_kind=BinaryFileKind.PDF,
        file_extension="pdf", directory="a",
    )  # fmt: skip
    assert whole.model_dump_json() == (
        '{"file_key":"k.pdf","mime_kind":"application/pdf","file_size":3,"file_name":"a/ä.pdf","file_kind":"pdf",'
        '"file_extension":"pdf","directory":"a"}'
    )


def test_a_reference_is_read_leniently() -> None:
    read = BinaryDataReference.model_validate_json('{"file_key":"file_42","mime_kind":"a/b","file_size":0,"new":[1]}')
    assert read == BinaryDataReference(file_key="file_42", mime_kind="a/b", file_size=0)


@pytest.mark.parametrize(
    "change", [{"file_size": -1}, {"file_size": 2**63}, {"file_kind": "binary"}, {"file_key": None}]
)
def test_references_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BinaryDataReference.model_validate({"file_key": "k", "mime_kind": "a/b", "file_size": 1} | change)


@given(REFERENCES)
def test_a_reference_comes_back_from_json_as_it_was(reference: BinaryDataReference) -> None:
    written = reference.model_dump_json()
    assert BinaryDataReference.model_validate_json(written) == reference
    assert json.loads(written) == reference.model_dump(mode="json")


def test_metadata_is_checked_and_written_one_way() -> None:
    metadata = BinaryDataMetadata(
        file_name="../a b\n🙂.pdf", mime_type="Application/PDF", file_size=0, last_modified=-1,
        namespace="team/a:b.c_d-1",
    )  # fmt: skip
    assert metadata.mime_type == "application/pdf"
    assert metadata.file_name == "../a b\n🙂.pdf"
    assert BinaryDataMetadata() == BinaryDataMetadata(labels={})


@pytest.mark.parametrize(
    "wrong",
    [
        {"mime_type": "nonsense"}, {"mime_type": ""}, {"file_size": -1}, {"file_size": 2**63}, {"file_size": 1.5},
        {"last_modified": 2**63}, {"last_modified": 253_402_300_800}, {"last_modified": -62_135_596_800},
        {"namespace": ""}, {"namespace": "a b"}, {"namespace": "a\n"}, {"namespace": ".a"}, {"namespace": "a" * 129},
        {"namespace": "é"}, {"directory": "a\x00"}, {"directory": "d" * 4097}, {"file_extension": "\x00"},
        {"file_extension": "\ud800"}, {"file_kind": "binary"}, {"labels": []}, {"labels": None}, {"file-name": "a"},
    ],
)  # fmt: skip
def test_metadata_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        BinaryDataMetadata.model_validate(wrong)


@pytest.mark.parametrize("edge", [253_402_300_799, -62_135_596_799, 0])
def test_times_from_the_first_year_to_the_last(edge: int) -> None:
    assert BinaryDataMetadata(last_modified=edge).last_modified == edge


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> dict[str, Any]:
    labels: dict[str, Any] = {}
    labels["self"] = labels
    return labels


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"a": "x\x00"}, "NUL"), ({"x\x00": 1}, "NUL"), ({"a": [{"b": "\\\x00"}]}, "NUL"),
        ({"a": object()}, "JSON"), ({"a": b"x"}, "JSON"), ({"a": {1, 2}}, "JSON"), ({"a": math.nan}, "JSON"),
        ({"a": math.inf}, "JSON"), ({"a": "\ud800"}, "JSON"), ({"a": nested(100_000)}, "JSON"), (circular(), "JSON"),
        ({"a": "x" * 16_377}, "16,385 bytes as JSON; at most 16,384"), ({"a": "é" * 9000}, "at most 16,384"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be(labels: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BinaryDataMetadata(labels=labels)


def test_labels_at_their_limits() -> None:
    assert BinaryDataMetadata(labels={"a": "x" * 16_376}).labels == {"a": "x" * 16_376}
    # A backslash and then u0000 in letters is no NUL.
    assert BinaryDataMetadata(labels={"a": "\\u0000"}).labels == {"a": "\\u0000"}


def test_labels_are_the_metadata_s_own() -> None:
    labels: dict[str, Any] = {"nodes": ["a"], "pair": (1, 2)}
    metadata = BinaryDataMetadata(labels=labels)
    labels["nodes"].append("b")
    assert metadata.labels == {"nodes": ["a"], "pair": [1, 2]}


@given(st.dictionaries(TEXTS, JSON_VALUES, max_size=4))
def test_labels_come_back_as_they_were(labels: dict[str, Any]) -> None:
    metadata = BinaryDataMetadata(labels=labels)
    assert metadata.labels == labels
    assert BinaryDataMetadata.model_validate_json(metadata.model_dump_json()) == metadata
