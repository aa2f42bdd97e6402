import bz2
import csv
import gzip
import importlib
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bdr.mime import HEAD_SIZE, UNKNOWN, guess_mime, normalise_mime, sniff_mime
from bdr.reference import BinaryFileKind

# A folder of programs, no package: type checkers know its modules by another name.
SCRIPT = importlib.import_module("scripts.documents")
make_documents: Callable[[Path], list[Path]] = SCRIPT.make_documents
big_stream: Callable[[int], AsyncIterator[bytes]] = SCRIPT.big_stream

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"


def zipped(
    entries: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED, *, streamed: bool = False
) -> bytes:
    file = io.BytesIO()
    # A file that cannot seek makes zipfile write sizes behind the data, as streaming writers do.
    target = Unseekable(file) if streamed else file
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, body in entries:
            archive.writestr(name, body)
    return file.getvalue()


class Unseekable(io.RawIOBase):
    def __init__(self, file: io.BytesIO) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self.file.write(bytes(data))  # type: ignore[call-overload]  # zipfile hands over bytes


def tar_of(name: str, body: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(body)
        archive.addfile(entry, io.BytesIO(body))
    return file.getvalue()


EXPECTED = {
    "report.pdf": ("application/pdf", "pdf"),
    "chart.png": ("image/png", "image"),
    "photo.jpg": ("image/jpeg", "image"),
    "orders.json": ("application/json", "json"),
    "orders.csv": ("text/csv", "text"),
    "page.html": ("text/html", "html"),
    "notes.txt": ("text/plain", "text"),
    "orders.xlsx": (XLSX, "excel"),
    "letter.docx": (DOCX, "word"),
    "slides.pptx": (PPTX, "ppt"),
    "tone.wav": ("audio/x-wav", "audio"),
    "clip.avi": ("video/x-msvideo", "video"),
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_documents(tmp_path_factory.mktemp("documents") / "made")


def test_real_documents_are_recognised_by_their_bytes_alone(documents: list[Path]) -> None:
    found = {}
    for path in documents:
        data = path.read_bytes()
        mime = sniff_mime(data[:HEAD_SIZE], complete=len(data) <= HEAD_SIZE)
        found[path.name] = (mime, BinaryFileKind.of_mime(mime))
        assert guess_mime(data, path.name, complete=True) == mime
    assert found == EXPECTED
    assert {kind for _, kind in found.values()} == set(BinaryFileKind)


def test_documents_say_the_same_on_every_run(documents: list[Path], tmp_path: Path) -> None:
    # Office files carry the time of day in their zip headers.
    for first, second in zip(documents, make_documents(tmp_path), strict=True):
        assert first.name == second.name
        if first.suffix not in {".xlsx", ".docx", ".pptx"}:
            assert first.read_bytes() == second.read_bytes(), first.name


def test_the_csv_is_one(documents: list[Path]) -> None:
    path = next(path for path in documents if path.suffix == ".csv")
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    assert {len(row) for row in rows} == {5}
    assert "ink, black" in rows[1] or any("ink, black" in row for row in rows)


def test_the_video_has_a_picture_wherever_its_index_points(documents: list[Path]) -> None:
    data = next(path for path in documents if path.suffix == ".avi").read_bytes()
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    movi, idx1 = data.index(b"movi"), data.index(b"idx1")
    entries = [data[at : at + 16] for at in range(idx1 + 8, len(data), 16)]
    assert len(entries) == 12
    for entry in entries:
        at = movi + int.from_bytes(entry[8:12], "little")
        frame = data[at + 8 : at + 8 + int.from_bytes(entry[12:16], "little")]
        assert data[at : at + 4] == b"00dc"
        assert frame.startswith(b"\xff\xd8")
        assert frame.endswith(b"\xff\xd9")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
async def test_the_stream_has_its_size_and_repeats_exactly(size: int) -> None:
    chunks = [chunk async for chunk in big_stream(size)]
    assert sum(map(len, chunks)) == size
    assert all(len(chunk) == 1 << 20 for chunk in chunks[:-1])
    assert len(set(chunks)) == len(chunks)
    assert chunks == [chunk async for chunk in big_stream(size)]


def sqlite_file() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (n)")
        data = connection.serialize()
    connection.close()
    return data


BINARY: dict[str, tuple[Callable[[], bytes], str]] = {
    "parquet": (lambda: b"PAR1\x15\x04\x15\x00", "application/vnd.apache.parquet"),
    "arrow": (lambda: b"ARROW1\0\0\xff\xff\xff\xff", "application/vnd.apache.arrow.file"),
    "numpy": (lambda: b"\x93NUMPY\x01\0v\0{'descr': '<f8'}", "application/x-npy"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n\0\0", "application/x-hdf5"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd\x24\0", "application/zstd"),
    "avro": (lambda: b"Obj\x01\x04\x14avro.codec", "application/avro"),
    "sqlite": (sqlite_file, "application/vnd.sqlite3"),
    "gzip": (lambda: gzip.compress(b"hello"), "application/gzip"),
    "bzip2": (lambda: bz2.compress(b"hello"), "application/x-bzip2"),
    "xz": (lambda: lzma.compress(b"hello"), "application/x-xz"),
    "tar of text": (lambda: tar_of("a.txt", b"hello"), "application/x-tar"),
    "tar of a PDF": (lambda: tar_of("a.pdf", b"%PDF-1.7"), "application/x-tar"),
    "zip": (lambda: zipped([("a.txt", b"hello")]), "application/zip"),
    "empty zip": (lambda: zipped([]), "application/zip"),
    "PDF behind a mail header": (lambda: b"\0\0\0junk\n%PDF-1.4\n", "application/pdf"),
    "mp4 of an unknown brand": (lambda: b"\0\0\0\x18ftypabcd\0\0\0\0abcdefgh", "video/mp4"),
    "mp4": (lambda: b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "video/mp4"),
    "m4a": (lambda: b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42", "audio/mp4"),
    "old Word": (lambda: ole(b"\xec\xa5\xc1\0"), "application/msword"),
    "old Excel": (lambda: ole("Workbook".encode("utf-16-le")), "application/vnd.ms-excel"),
    "unknown OLE": (lambda: ole(b"\xfd\xff\xff\xff\0\0\0\0\0\0\0\0\0"), "application/x-ole-storage"),
    "noise": (lambda: b"\x81\x82\x83\x00\x01", UNKNOWN),
    "latin-1": (lambda: "Grüße aus Köln".encode("latin-1"), UNKNOWN),
    "UTF-16 with control characters": (lambda: b"\xff\xfea\0\x01\0", UNKNOWN),
    "nothing": (lambda: b"", UNKNOWN),
}


def ole(at_512: bytes) -> bytes:
    return (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".ljust(512, b"\0") + at_512).ljust(2048, b"\0")


@pytest.mark.parametrize("name", BINARY)
def test_binary_formats(name: str) -> None:
    make, mime = BINARY[name]
    assert sniff_mime(make()) == mime
    assert sniff_mime(make(), complete=True) == mime


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [None, 5, -1, 2**80, 1.5, "text", b"bytes", [1], (), {"a": 1}, {1}, True, len, Path])
def test_pickles(value: object, protocol: int) -> None:
    assert sniff_mime(pickle.dumps(value, protocol)) == "application/x-python-pickle"


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (b"BMW is a car, MZ is a town", "text/plain"),
        (b"GIF is pronounced so", "text/plain"),
        (b"hello", "text/plain"),
        (b"\n\n", "text/plain"),
        ("日本語".encode()[:-1], "text/plain"),
        ("a,ö".encode("utf-16"), "text/plain"),
        (b"\xef\xbb\xbfhello", "text/plain"),
        (b"\x1b[31mred\x1b[0m", "text/plain"),
        (b' {"a": [1, 2.5e3, null, {"b": "\\u00e9"}]} ', "application/json"),
        (b"\xef\xbb\xbf[]", "application/json"),
        ('{"wide": "ö"}'.encode("utf-16"), "application/json"),
        (b"[" * 9000, "application/json"),
        (b"[" + b"1" * 5000 + b"]", "application/json"),
        (b"[2024-01-01 12:00] started", "text/plain"),
        (b"[see below]", "text/plain"),
        (b"{braces}", "text/plain"),
        (b'"a string"', "text/plain"),
        (b"<!DOCTYPE html><title>x", "text/html"),
        (b"<!-- a --> <HTML lang=en>", "text/html"),
        (b"<?xml version='1.0'?>\n<html xmlns='x'>", "text/html"),
        (b"<?xml version='1.0'?><!-- a --><svg xmlns='x'>", "image/svg+xml"),
        (b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN'>", "image/svg+xml"),
        (b"<svg viewBox='0 0 1 1'/>", "image/svg+xml"),
        (b"<?xml version='1.0'?><orders/>", "text/xml"),
        (b"<orders/>", "text/plain"),
        (b"<", "text/plain"),
        (b"<!--" * 2000, "text/plain"),
        (b"a,b,c\n1,2,3\n4,5,6\n", "text/csv"),
        (b",a,b\n0,2,3\n1,5,6\n", "text/csv"),
        (b'a;b;c\n"1;1";2;3\n4;5;6\n', "text/csv"),
        (b"a\tb\tc\n1\t2\t3\n4\t5\t6\n", "text/tab-separated-values"),
        (b"a,b\n1,2\n3,4\n", "text/plain"),
        (b"a,b\n1,2\n3,4\n5,6\n7,8\n", "text/csv"),
        (b"a,b,c\n1,2\n4,5,6\n", "text/plain"),
        (b"First, one.\nThen, two.\nThen, three.\nThen, four.\nThen, five.\n", "text/plain"),
        (b"int a;\nint b;\nint c;\nint d;\nint e;\n", "text/plain"),
        (b"# Title\n\nSome *text*\n", "text/plain"),
        (b"{\\rtf1\\ansi hello}", "application/rtf"),
    ],
)
def test_text_formats(data: bytes, mime: str) -> None:
    assert sniff_mime(data, complete=not mime.startswith("text/plain")) == mime


JSON_TEXT = json.dumps({"é": [1, -2.5e-3, None, True, False, {"b": '\u00e9"\\\n'}], "c": []})


@pytest.mark.parametrize("length", range(1, len(JSON_TEXT) + 1))
def test_json_is_json_wherever_it_is_cut(length: int) -> None:
    assert sniff_mime(JSON_TEXT[:length].encode()) == "application/json"


def test_a_whole_file_that_is_no_json_is_text() -> None:
    for length in range(1, len(JSON_TEXT)):
        assert sniff_mime(JSON_TEXT[:length].encode(), complete=True) == "text/plain"


def test_a_table_is_one_wherever_it_is_cut() -> None:
    table = b"id,name,price\n" + b"".join(b"%d,article %d,%d.50\n" % (at, at, at) for at in range(20))
    for length in range(table.index(b"\n1,") + 20, len(table)):
        assert sniff_mime(table[:length]) == "text/csv"


def test_a_character_cut_at_the_end_of_the_head_is_text_but_not_at_the_end_of_the_file() -> None:
    data = "€".encode() * 3000
    assert sniff_mime(data) == "text/plain"
    assert sniff_mime(data, complete=True) == "text/plain"
    assert sniff_mime("€".encode()[:2], complete=True) == UNKNOWN


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize(("part", "mime"), [("word/document", DOCX), ("xl/workbook", XLSX), ("ppt/presentation", PPTX)])
def test_office_files_in_any_order(part: str, mime: str, method: int, *, streamed: bool) -> None:
    index = f'<Types><Override PartName="/{part}.xml" ContentType="x"/></Types>'.encode()
    far = bytes(range(256)) * 40
    parts = [("[Content_Types].xml", index), ("docProps/thumbnail.jpeg", far), (f"{part}.xml", b"<x/>")]
    assert sniff_mime(zipped(parts, method, streamed=streamed)) == mime
    assert sniff_mime(zipped(reversed(parts), method, streamed=streamed)) == mime


def test_a_zip_that_holds_office_files_is_a_zip() -> None:
    inner = zipped([("word/document.xml", b"<x/>")], zipfile.ZIP_STORED)
    assert sniff_mime(zipped([("letter.docx", inner)], zipfile.ZIP_STORED)) == "application/zip"
    assert sniff_mime(zipped([("word/list.txt", b"words"), ("xl/notes.txt", b"")])) == "application/zip"


def test_a_damaged_office_file_is_a_zip() -> None:
    whole = zipped([("[Content_Types].xml", b"<Types/>" * 9)])
    body = whole.index(b".xml") + 4
    assert sniff_mime(whole[:body] + b"\xff" * 20 + whole[body + 20 :]) == "application/zip"


def test_a_limit_that_the_program_sets_for_its_own_tables_does_not_make_it_fail() -> None:
    before = csv.field_size_limit(4)
    try:
        assert sniff_mime(b"first,second,third\n1,2,3\n4,5,6\n") == "text/plain"
    finally:
        csv.field_size_limit(before)


def test_open_documents_and_books_say_what_they_are_and_nothing_else_does() -> None:
    odt = "application/vnd.oasis.opendocument.text"
    assert sniff_mime(zipped([("mimetype", odt.encode())], zipfile.ZIP_STORED)) == odt
    assert sniff_mime(zipped([("mimetype", b"application/epub+zip")], zipfile.ZIP_STORED)) == "application/epub+zip"
    assert sniff_mime(zipped([("mimetype", b"text/html")], zipfile.ZIP_STORED)) == "application/zip"


@pytest.mark.parametrize(
    ("data", "name", "mime"),
    [
        (b"a,b\n1,2\n", "small.csv", "text/csv"),
        (b"# Title", "README.md", "text/markdown"),
        (b"# Title", "dir.csv\\README.MD", "text/markdown"),
        (b"key: value", "a.yaml", "application/yaml"),
        (b"<p>only a part", "part.html", "text/html"),
        (b'{"a": 1}\n{"a": 2}\n', "rows.jsonl", "application/x-ndjson"),
        (b'{"a": 1}', "a.txt", "application/json"),
        (b"not a picture", "a.png", "text/plain"),
        (b"\x81\x82\x83", "a.png", UNKNOWN),
        (b"\x81\x82\x83", "a.docx", UNKNOWN),
        (b"\x81\x82\x83", "a.mpg", "video/mpeg"),
        ("Größe;1".encode("latin-1"), "a.csv", "text/csv"),
        (b"", "empty.csv", "text/csv"),
        (b"", "empty.pdf", UNKNOWN),
        (b"", None, UNKNOWN),
        (b"text", ".csv", "text/plain"),
        (b"text", "a.unknown", "text/plain"),
        (b"text", "", "text/plain"),
        (zipped([("a", b"b")]), "report.docx", DOCX),
        (zipped([("a", b"b")]), "tool.jar", "application/java-archive"),
        (zipped([("a", b"b")]), "page.html", "application/zip"),
        (ole(b""), "encrypted.xlsx", XLSX),
        (ole(b""), "mail.msg", "application/vnd.ms-outlook"),
        (b"%PDF-1.7", "a.docx", "application/pdf"),
    ],
)
def test_the_extension_decides_only_what_the_bytes_leave_open(data: bytes, name: str | None, mime: str) -> None:
    assert guess_mime(data, name, complete=True) == mime


PREFIXES = st.sampled_from([
    b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"%PDF-", b"\0\0\0\x18ftyp", b"\0\0\x20\0ftyp", b"RIFF", b"\x1aE\xdf\xa3",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\x80\x04", b"{", b"[", b"<", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf",
    b"a,b,c\n", b"\x1f\x8b", b"ID3", b"\xff\xfb", b"ftyp3gp", b"PK\x03\x04" + b"\xff" * 26, b'"', b"a,\"b\r\n",
])  # fmt: skip


@given(PREFIXES, st.binary(max_size=400), st.integers(0, 40), st.booleans())
@example(b"", b"\xff\xfe\x00\xd8", 1, True)
def test_no_bytes_make_it_fail(prefix: bytes, rest: bytes, times: int, complete: bool) -> None:
    mime = sniff_mime(prefix + rest * times, complete=complete)
    assert normalise_mime(mime) == mime
    assert sniff_mime(prefix + rest * times, complete=complete) == mime


@given(st.text(max_size=300), st.text(max_size=40))
def test_no_text_makes_it_fail(text: str, name: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    assert normalise_mime(guess_mime(data, name)) == guess_mime(data, name)


def test_mime_types_are_written_one_way() -> None:
    assert normalise_mime("Image/PNG") == "image/png"
    assert normalise_mime(' text/HTML ;Charset=UTF-8 ; x="A; b\\"" ') == 'text/html; charset=UTF-8; x="A; b\\""'
    assert normalise_mime("text/html;") == "text/html"
    assert normalise_mime("application/vnd.ms-excel.sheet.macroEnabled.12").endswith(".macroenabled.12")
    assert normalise_mime("a/" + "b" * 127) == "a/" + "b" * 127


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "png", "image/", "/png", "image/png\n", "image\n/png", "im age/png", "*/*", "image/*", "a/b/c", "ä/b",
        "text/plain\r\nX-Header: 1", "text/plain\x00", "text/plain; charset", "text/plain, text/html", "\x1b[31m/x",
        "text/plain; a=\"b\nc\"", "text/plain; a=\"b", "a/" + "b" * 128, "x" * 10_000, "a/b;" + "c=d;" * 62 + "e=f",
        "text/\ud800", "<b>/x",
    ],
)  # fmt: skip
def test_nonsense_is_no_mime_type(text: str) -> None:
    with pytest.raises(ValueError, match="MIME type") as raised:
        normalise_mime(text)
    assert len(str(raised.value)) < 250
    assert str(raised.value).isprintable()


@given(st.text(max_size=300))
def test_a_mime_type_is_accepted_as_it_was_written(text: str) -> None:
    try:
        written = normalise_mime(text)
    except ValueError:
        return
    assert normalise_mime(written) == written
    assert len(written) <= 255
