"""Real documents of every kind, made by the libraries that people make them with; the same on every run."""

import array
import io
import json
import math
import random
import re
import struct
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from docx import Document
from openpyxl import Workbook
from PIL import Image, ImageDraw
from pptx import Presentation
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

CHUNK_SIZE = 1 << 20
_HEADER = ("order", "customer", "article", "amount", "price")
_CUSTOMERS = ("Ada Byron", "Grete Hermann", "Érdős Pál", "王小明", "Noor Inayat")
_ARTICLES = ("paper A4", "ink, black", 'frame 12"', "stapler", "envelope")
_FRAMES = 12
_FRAME_RATE = 12
_PICTURE_SIZE = (160, 120)
_HAS_INDEX = _KEY_FRAME = 0x10
# The time of day in an Office file.
_TIME = re.compile(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FIXED_TIME = b"2024-02-29T12:00:00Z"


def make_documents(folder: Path) -> list[Path]:
    """Write a document of each kind to `folder`, which is made if need be; gives back their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in _MAKERS]
    for path in paths:
        _MAKERS[path.name](path)
    return paths


async def big_stream(size: int) -> AsyncIterator[bytes]:
    """`size` bytes in chunks of 1 MiB, the last one shorter: no two chunks alike, the same on every run."""
    noise = random.Random(20_240_229).randbytes(CHUNK_SIZE - 8)  # noqa: S311 - repeatable on purpose, nothing secret
    for number, start in enumerate(range(0, size, CHUNK_SIZE)):
        yield (number.to_bytes(8) + noise)[: size - start]


def _orders() -> Iterator[tuple[int, str, str, int, float]]:
    for number in range(1, 61):
        customer, article = _CUSTOMERS[number % 5], _ARTICLES[number * 7 % 5]
        yield 1000 + number, customer, article, number * 3 % 11 + 1, round(number * 1.75, 2)


def _pdf(path: Path) -> None:
    # Without `invariant` the time of day would be in it.
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    canvas.setTitle("Orders of the quarter")
    for page in range(1, 4):
        canvas.drawString(72, 770, f"Orders of the quarter, page {page}")
        for line, order in enumerate(list(_orders())[page * 20 - 20 : page * 20]):
            canvas.drawString(72, 740 - line * 16, f"{order[0]}   {order[3]} pieces at {order[4]:.2f}")
        canvas.showPage()
    canvas.save()


def _picture(step: int, size: tuple[int, int] = _PICTURE_SIZE) -> Image.Image:
    width, height = size
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(picture)
    left = step * (width - height // 2) // _FRAMES
    draw.ellipse((left, height // 4, left + height // 2, height * 3 // 4), fill=(200, 60, 20))
    return picture


def _png(path: Path) -> None:
    _picture(3, (640, 480)).save(path, "PNG")


def _jpeg(path: Path) -> None:
    _picture(7, (1024, 768)).save(path, "JPEG", quality=85)


def _json(path: Path) -> None:
    orders = [dict(zip(_HEADER, order, strict=True)) for order in _orders()]
    path.write_text(json.dumps({"orders": orders}, ensure_ascii=False, indent=2), encoding="utf-8")


def _csv(path: Path) -> None:
    rows = [",".join(_HEADER)]
    rows += [
        f'{order[0]},{order[1]},"{order[2].replace(chr(34), chr(34) * 2)}",{order[3]},{order[4]}' for order in _orders()
    ]
    path.write_text("\r\n".join(rows) + "\r\n", encoding="utf-8", newline="")


def _html(path: Path) -> None:
    rows = "\n".join(f"<tr><td>{order[0]}</td><td>{order[1]}</td><td>{order[4]:.2f}</td></tr>" for order in _orders())
    page = f'<meta charset="utf-8">\n<title>Orders</title>\n<h1>Orders</h1>\n<table>\n{rows}\n</table>\n'
    path.write_text(f'<!DOCTYPE html>\n<html lang="en">\n{page}</html>\n', encoding="utf-8")


def _text(path: Path) -> None:
    lines = [f"{order[1]} ordered {order[3]} pieces of {order[2]}." for order in _orders()]
    path.write_text("Notes of the quarter\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _without_time(path: Path) -> None:
    """Write an Office file anew without the time at which it was made; it is a ZIP archive of XML."""
    with ZipFile(path) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    with ZipFile(path, "w") as archive:
        for name, content in parts:
            archive.writestr(ZipInfo(name), _TIME.sub(_FIXED_TIME, content), ZIP_DEFLATED)


def _xlsx(path: Path) -> None:
    book = Workbook()
    sheet = book.create_sheet("Orders", 0)
    for row in (_HEADER, *_orders()):
        sheet.append(row)
    book.save(path)
    _without_time(path)


def _docx(path: Path) -> None:
    letter = Document()
    letter.add_heading("Orders of the quarter", level=1)
    table = letter.add_table(rows=0, cols=len(_HEADER))
    for order in (_HEADER, *list(_orders())[:15]):
        for cell, value in zip(table.add_row().cells, order, strict=True):
            cell.text = str(value)
    letter.add_paragraph("With kind regards, the warehouse.").paragraph_format.page_break_before = True
    letter.save(str(path))
    _without_time(path)


def _pptx(path: Path) -> None:
    slides = Presentation()
    for customer in _CUSTOMERS:
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = customer
        ordered = [f"{order[3]} x {order[2]}" for order in _orders() if order[1] == customer]
        slide.placeholders[1].text = "\n".join(ordered[:6])
    slides.save(str(path))
    _without_time(path)


def _wav(path: Path) -> None:
    """One second of 440 Hz, mono, 16 bit."""
    rate = 22_050
    samples = array.array("h", (int(12_000 * math.sin(2 * math.pi * 440 * at / rate)) for at in range(rate)))
    if struct.pack("=h", 1) != struct.pack("<h", 1):
        samples.byteswap()
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        sound.writeframes(samples.tobytes())


def _avi(path: Path) -> None:
    """One second of motion JPEG: a ball that crosses the picture."""
    frames = [_jpeg_bytes(_picture(step)) for step in range(_FRAMES)]
    movie, index = b"movi", b""
    for frame in frames:
        # Offsets count from the word "movi", sizes leave the padding out.
        index += struct.pack("<4sIII", b"00dc", _KEY_FRAME, len(movie), len(frame))
        movie += _chunk(b"00dc", frame)
    body = b"AVI " + _avi_headers(max(map(len, frames))) + _chunk(b"LIST", movie) + _chunk(b"idx1", index)
    path.write_bytes(_chunk(b"RIFF", body))


def _jpeg_bytes(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return file.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _avi_headers(largest: int) -> bytes:
    width, height = _PICTURE_SIZE
    main = struct.pack(
        "<14I", 1_000_000 // _FRAME_RATE, largest * _FRAME_RATE, 0, _HAS_INDEX, _FRAMES, 0, 1, largest, width, height,
        0, 0, 0, 0,
    )  # fmt: skip
    stream = struct.pack(
        "<4s4sIHHIIIIIIiI4H", b"vids", b"MJPG", 0, 0, 0, 0, 1, _FRAME_RATE, 0, _FRAMES, largest, -1, 0,
        0, 0, width, height,
    )  # fmt: skip
    picture = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    streams = b"strl" + _chunk(b"strh", stream) + _chunk(b"strf", picture)
    return _chunk(b"LIST", b"hdrl" + _chunk(b"avih", main) + _chunk(b"LIST", streams))


_MAKERS = {
    "report.pdf": _pdf,
    "chart.png": _png,
    "photo.jpg": _jpeg,
    "orders.json": _json,
    "orders.csv": _csv,
    "page.html": _html,
    "notes.txt": _text,
    "orders.xlsx": _xlsx,
    "letter.docx": _docx,
    "slides.pptx": _pptx,
    "tone.wav": _wav,
    "clip.avi": _avi,
}
