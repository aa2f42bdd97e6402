"""The documents of the demo: each is what its name says, and the same on every run."""

import csv
import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import wave
from html.parser import HTMLParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from docx import Document
from openpyxl import load_workbook
from PIL import Image
from pptx import Presentation

from bdr import BinaryFileKind
from bdr.mime import HEAD_SIZE, guess_mime
from scripts.documents import CHUNK_SIZE, big_stream, make_documents

OFFICE = "application/vnd.openxmlformats-officedocument."
EXPECTED = {
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
CUSTOMERS = ["Ada Byron", "Grete Hermann", "Érdős Pál", "王小明", "Noor Inayat"]
DIGESTS = """
import hashlib, sys
from pathlib import Path
from scripts.documents import make_documents
for path in make_documents(Path(sys.argv[1])):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has all documents in it."""
    folder = tmp_path_factory.mktemp("made") / "documents"
    make_documents(folder)
    return folder


def test_every_kind_of_file_is_among_the_documents(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == EXPECTED.keys()
    assert {kind for _, kind in EXPECTED.values()} == set(BinaryFileKind)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("named", [True, False], ids=["by bytes and name", "by bytes alone"])
def test_type_and_kind_are_found_from_the_document(folder: Path, name: str, named: bool) -> None:
    data = (folder / name).read_bytes()
    mime = guess_mime(data[:HEAD_SIZE], name if named else None, complete=len(data) <= HEAD_SIZE)
    assert (mime, BinaryFileKind.of_mime(mime)) == EXPECTED[name]


def test_the_documents_are_the_same_on_every_run(tmp_path: Path) -> None:
    made = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Kathmandu")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": zone, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", DIGESTS, str(tmp_path / seed)]
        made.append(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    assert made[0] == made[1]
    assert len(made[0].splitlines()) == len(EXPECTED)


@pytest.mark.parametrize("name", ["orders.xlsx", "letter.docx", "slides.pptx"])
def test_no_time_of_day_is_in_an_office_file(folder: Path, name: str) -> None:
    with ZipFile(folder / name) as archive:
        assert {part.date_time for part in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        times = re.findall(rb"\d{4}-\d\d-\d\dT[\d:]+Z", archive.read("docProps/core.xml"))
    assert set(times) == {b"2024-02-29T12:00:00Z"}


def test_the_pdf_has_three_pages_where_its_table_says(folder: Path) -> None:
    data = (folder / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF-1.")
    assert data.rstrip().endswith(b"%%EOF")
    tail = re.search(rb"startxref\s+(\d+)", data)
    assert tail
    table = data[int(tail[1]) :]
    assert table.startswith(b"xref\n")
    entries = re.findall(rb"(\d{10}) \d{5} n", table)
    for number, offset in enumerate(entries, start=1):
        assert data[int(offset) :].startswith(b"%d 0 obj" % number)
    assert len(re.findall(rb"/Type /Page\b", data)) == 3
    assert b"Orders of the quarter" in data


@pytest.mark.parametrize(
    ("name", "kind", "size"), [("chart.png", "PNG", (640, 480)), ("photo.jpg", "JPEG", (1024, 768))]
)
def test_pictures_can_be_opened_and_show_something(folder: Path, name: str, kind: str, size: tuple[int, int]) -> None:
    with Image.open(folder / name) as picture:
        assert (picture.format, picture.size, picture.mode) == (kind, size, "RGB")
        colors = picture.getcolors(maxcolors=1 << 24)
        assert colors is not None
        assert len(colors) > 100


def test_the_json_and_the_table_hold_the_same_orders(folder: Path) -> None:
    orders = json.loads((folder / "orders.json").read_text(encoding="utf-8"))["orders"]
    with (folder / "orders.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(orders) == 60
    assert [{name: str(value) for name, value in order.items()} for order in orders] == rows
    assert {row["customer"] for row in rows} == set(CUSTOMERS)
    # Both have to be quoted.
    assert {"ink, black", 'frame 12"'} <= {row["article"] for row in rows}


def test_the_page_has_a_row_for_each_order(folder: Path) -> None:
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)

    Tags().feed((folder / "page.html").read_text(encoding="utf-8"))
    assert (seen[0], seen.count("title"), seen.count("tr"), seen.count("td")) == ("html", 1, 60, 180)


def test_the_notes_have_a_line_for_each_order(folder: Path) -> None:
    lines = (folder / "notes.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 62
    assert lines[2] == 'Grete Hermann ordered 4 pieces of frame 12".'


def test_the_workbook_holds_the_orders_as_numbers_and_text(folder: Path) -> None:
    book = load_workbook(folder / "orders.xlsx")
    rows = list(book["Orders"].iter_rows(values_only=True))
    assert rows[0] == ("order", "customer", "article", "amount", "price")
    assert rows[1] == (1001, "Grete Hermann", 'frame 12"', 4, 1.75)
    assert len(rows) == 61


def test_the_letter_has_a_heading_a_table_and_a_last_line(folder: Path) -> None:
    letter = Document(str(folder / "letter.docx"))
    assert [paragraph.text for paragraph in letter.paragraphs] == [
        "Orders of the quarter",
        "With kind regards, the warehouse.",
    ]
    assert [cell.text for cell in letter.tables[0].rows[1].cells] == ["1001", "Grete Hermann", 'frame 12"', "4", "1.75"]


def test_the_slides_have_a_title_for_each_customer(folder: Path) -> None:
    slides = Presentation(str(folder / "slides.pptx")).slides
    assert [slide.shapes.title.text for slide in slides] == CUSTOMERS


def test_the_tone_is_a_second_of_440_hertz(folder: Path) -> None:
    with wave.open(str(folder / "tone.wav")) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 22_050)
        data = sound.readframes(sound.getnframes())
    samples = [sample for (sample,) in struct.iter_unpack("<h", data)]
    assert len(samples) == 22_050
    upwards = sum(before < 0 <= after for before, after in itertools.pairwise(samples))
    assert upwards in (439, 440)


def test_the_clip_is_a_second_of_pictures_where_its_index_says(folder: Path) -> None:
    data = (folder / "clip.avi").read_bytes()
    assert (data[:4], data[8:12]) == (b"RIFF", b"AVI ")
    assert struct.unpack("<I", data[4:8]) == (len(data) - 8,)
    period, frames = struct.unpack("<I12xI", data[data.index(b"avih") + 8 :][:20])
    assert (frames, period * frames) == (12, 999_996)
    movie = data.index(b"movi")
    index = data[data.index(b"idx1") + 8 :]
    pictures = [_picture(data, movie, entry) for entry in struct.iter_unpack("<4sIII", index)]
    assert len(set(pictures)) == 12


def _picture(data: bytes, movie: int, entry: tuple[bytes, int, int, int]) -> bytes:
    """One frame of the clip, by its entry in the index; it must be a picture of the right size."""
    name, _, offset, size = entry
    chunk = data[movie + offset :]
    assert (chunk[:4], struct.unpack("<I", chunk[4:8])) == (name, (size,))
    with Image.open(io.BytesIO(chunk[8 : 8 + size])) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("JPEG", (160, 120))
    return chunk[8 : 8 + size]


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE + 5])
async def test_the_stream_has_the_size_it_was_asked_for_and_no_two_chunks_alike(size: int) -> None:
    chunks = [chunk async for chunk in big_stream(size)]
    assert sum(map(len, chunks)) == size
    assert all(len(chunk) == CHUNK_SIZE for chunk in chunks[:-1])
    assert len(set(chunks)) == len(chunks)
    assert [chunk async for chunk in big_stream(size)] == chunks
