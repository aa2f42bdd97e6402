"""MIME types: what the first bytes of a file say it is, what its name adds, and whether a given type is one at all."""

import codecs
import csv
import json
import mimetypes
import re
import struct
import zlib
from collections.abc import Iterator

import filetype

HEAD_SIZE = 8192
UNKNOWN = "application/octet-stream"
MAX_MIME_LENGTH = 255

_PLAIN = "text/plain"
_ZIP = "application/zip"
_OLE = "application/x-ole-storage"
_OPEN_XML = "application/vnd.openxmlformats-officedocument."
_OFFICE = {
    b"word": f"{_OPEN_XML}wordprocessingml.document",
    b"xl": f"{_OPEN_XML}spreadsheetml.sheet",
    b"ppt": f"{_OPEN_XML}presentationml.presentation",
}

# Long enough, or binary enough, that no text starts like this by accident.
_SIGNATURES = (
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (0, b"ARROW1", "application/vnd.apache.arrow.file"),
    (0, b"\xff\xff\xff\xff\x10\x00\x00\x00", "application/vnd.apache.arrow.stream"),
    (0, b"FEA1\x00", "application/vnd.apache.arrow.file"),
    (0, b"Obj\x01", "application/avro"),
    (0, b"\x93NUMPY", "application/x-npy"),
    (0, b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),
    (0, b"CDF\x01", "application/x-netcdf"),
    (0, b"CDF\x02", "application/x-netcdf"),
    (0, b"(\xb5/\xfd", "application/zstd"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (8, b"DUCK", "application/vnd.duckdb"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"%!PS-", "application/postscript"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
)
# Pickle of protocol 2 or later: the protocol, then an opcode that can come first.
_PICKLE = re.compile(rb"\x80(?:[\x02\x03][()\]}NKMJGTUXCBc\x88-\x8b]|[\x04\x05][\x95()\]}NKMJGTUXCBc\x88-\x8f\x96])")
_OLE_SIGNATURE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Old Office files are all OLE storages: by the first stream, or by its name in the directory when that is near.
_OLE_STREAMS = (
    (b"\xec\xa5\xc1\x00", "application/msword"), (b"\x09\x08\x10\x00", "application/vnd.ms-excel"),
    (b"\xa0\x46\x1d\xf0", "application/vnd.ms-powerpoint"), (b"\x0f\x00\xe8\x03", "application/vnd.ms-powerpoint"),
)  # fmt: skip
_OLE_NAMES = (
    ("WordDocument", "application/msword"), ("PowerPoint Document", "application/vnd.ms-powerpoint"),
    ("Workbook", "application/vnd.ms-excel"), ("__properties_version1.0", "application/vnd.ms-outlook"),
)  # fmt: skip
_BRANDS = (
    (b"qt", "video/quicktime"), (b"3g", "video/3gpp"), (b"M4A", "audio/mp4"), (b"mif1", "image/heif"),
    (b"heix", "image/heic"), (b"", "video/mp4"),
)  # fmt: skip

_LOCAL_HEADER = struct.Struct("<4x2xHH8xI4xHH")
_HAS_DESCRIPTOR = 0x0008
_OFFICE_PART = re.compile(
    rb"(?:(word)/(?:document|styles|settings|numbering|fontTable|webSettings|comments|footnotes|theme/|_rels/)"
    rb"|(xl)/(?:workbook|styles|sharedStrings|theme/|worksheets/|_rels/)"
    rb"|(ppt)/(?:presentation|presProps|viewProps|tableStyles|theme/|slide|_rels/))"
)
_OPEN_XML_INDEX = (b"[Content_Types].xml", b"_rels/.rels")
_INDEXED_PART = re.compile(rb"""(?:PartName|Target)=["']/?(word|xl|ppt)/""")
_INDEX_LIMIT = 65_536
# Only the types that such containers really have: the entry is outside text and must not make a zip a web page.
_DECLARED = re.compile(rb"application/(?:epub\+zip|vnd\.[a-z0-9.+-]{1,80})")

_CONTROL = bytes({*range(0x20)} - set(b"\t\n\v\f\r\x1b"))
_TEXT_CONTROL = re.compile(f"[{re.escape(_CONTROL.decode())}]")
_MARKUP = re.compile(
    r"(?>\s|<\?[\s\S]*?\?>|<!--[\s\S]*?-->)*+<(?:!doctype\s+(?P<doctype>[\w:.-]+)|(?P<tag>[a-z][\w:.-]*))",
    re.IGNORECASE,
)
_HTML_TAGS = frozenset({"html", "head", "body"})
# What may remain at the end of a JSON text that was cut: the beginning of a number, a literal or an escape.
_CUT_TOKEN = re.compile(r"-|t|tr|tru|f|fa|fal|fals|n|nu|nul|\.|[eE][+-]?|\\?u[0-9a-fA-F]{0,4}|")
_DELIMITERS = ((",", "text/csv"), ("\t", "text/tab-separated-values"), (";", "text/csv"))
_CLEAR_TABLE = 3
_CLEAR_NARROW_TABLE = 5
# Enough to tell, where the rest would only cost time.
_NEAR = 1024
_TABLE_LINES = 12

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_ESSENCE = re.compile(rf"({_NAME}/{_NAME})[ \t]*")
_PARAMETER = re.compile(rf';[ \t]*(?:({_WORD})=({_WORD}|"(?:[ !#-\[\]-~]|\\[ -~])*"))?[ \t]*')
_SHOWN = 60

# Over the standard library's own table, which differs between Python versions; never the machine's mime.types.
_LOOSE, _STRICT = mimetypes.MimeTypes(filenames=()).types_map
_EXTENSIONS = _LOOSE | _STRICT | {
    ".7z": "application/x-7z-compressed", ".apk": "application/vnd.android.package-archive",
    ".arrow": "application/vnd.apache.arrow.file", ".avro": "application/avro", ".cfg": _PLAIN, ".conf": _PLAIN,
    ".csv": "text/csv", ".docx": _OFFICE[b"word"], ".eml": "message/rfc822", ".epub": "application/epub+zip",
    ".feather": "application/vnd.apache.arrow.file", ".geojson": "application/geo+json", ".ics": "text/calendar",
    ".ini": _PLAIN, ".ipynb": "application/x-ipynb+json", ".jar": "application/java-archive", ".js": "text/javascript",
    ".json": "application/json", ".jsonl": "application/x-ndjson", ".log": _PLAIN, ".md": "text/markdown",
    ".msg": "application/vnd.ms-outlook", ".ndjson": "application/x-ndjson",
    ".odp": "application/vnd.oasis.opendocument.presentation", ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text", ".opus": "audio/ogg", ".orc": "application/x-orc",
    ".parquet": "application/vnd.apache.parquet", ".pptx": _OFFICE[b"ppt"], ".rst": "text/x-rst",
    ".sql": "application/sql", ".toml": "application/toml", ".tsv": "text/tab-separated-values", ".txt": _PLAIN,
    ".vcf": "text/vcard", ".xlsx": _OFFICE[b"xl"], ".xml": "text/xml", ".yaml": "application/yaml",
    ".yml": "application/yaml",
}  # fmt: skip
_TEXTUAL = frozenset({
    "application/json", "application/x-ndjson", "application/sql", "application/toml", "application/yaml",
    "application/xml", "application/x-sh", "application/x-csh", "application/x-tex", "application/x-latex",
    "message/rfc822",
})  # fmt: skip
_ZIPPED = frozenset({
    *_OFFICE.values(), "application/epub+zip", "application/java-archive", "application/vnd.android.package-archive",
    "application/vnd.oasis.opendocument.presentation",
    "application/vnd.oasis.opendocument.spreadsheet", "application/vnd.oasis.opendocument.text",
})  # fmt: skip
# The Open XML types among them: an encrypted .docx is an OLE storage.
_IN_OLE = frozenset({*_OFFICE.values(), *(mime for _, mime in _OLE_NAMES)})
# Whoever is one of these shows it in the first bytes, so a name alone does not make it one.
_ALWAYS_SIGNED = _ZIPPED | {mime for _, _, mime in _SIGNATURES} | {_ZIP, "application/gzip", "image/png", "image/jpeg"}


def sniff_mime(head: bytes, *, complete: bool = False) -> str:
    """The MIME type that the first bytes of a file show; never raises.

    Args:
        head: the first bytes; only the first 8 KiB are looked at.
        complete: whether `head` is the whole file, which decides whether JSON must be whole and a last line counts.

    Signatures longer than text starts with by accident come first, then text, then the short signatures ("BM", "MZ"),
    which a sentence may well begin with. Text is UTF-8 without control characters, or UTF-16 with a byte order mark.
    What nothing matches, and the empty file, is `application/octet-stream`.
    """
    whole = complete and len(head) <= HEAD_SIZE
    head = bytes(head[:HEAD_SIZE])
    return _signed_mime(head) or _text_mime(head, complete=whole) or _library_mime(head) or UNKNOWN


def guess_mime(head: bytes, file_name: str | None = None, *, complete: bool = False) -> str:
    """Like `sniff_mime`, refined by the extension of `file_name` where the bytes leave it open.

    Plain text may be any kind of text (`.md`, `.csv`), a zip what is made of zips (`.docx`, `.jar`), and unknown or no
    bytes anything that does not always show itself: bytes that are no PNG are not called one.
    """
    sniffed = sniff_mime(head, complete=complete)
    named = _EXTENSIONS.get(_extension(file_name or ""))
    return named if named is not None and _refines(named, sniffed) else sniffed


def normalise_mime(text: str) -> str:
    """`text` as a checked MIME type: type and subtype in lower case, parameters as `; name=value`.

    Raises:
        ValueError: it is longer than 255 characters or not of the form of RFC 6838.
    """
    stripped = _checked_length(text).strip(" \t")
    essence = _ESSENCE.match(stripped)
    if essence is None:
        raise _not_mime(text)
    return _checked_length("; ".join([essence[1].lower(), *_parameters(stripped, essence.end())]))


def _checked_length(text: str) -> str:
    if len(text) > MAX_MIME_LENGTH:
        raise ValueError(f"a MIME type has at most {MAX_MIME_LENGTH} characters, this has {len(text):,}")
    return text


def _parameters(text: str, position: int) -> Iterator[str]:
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None:
            raise _not_mime(text)
        if found[1]:
            yield f"{found[1].lower()}={found[2]}"
        position = found.end()


def _not_mime(text: str) -> ValueError:
    shown = ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    return ValueError(f"{shown} is not a MIME type; one looks like 'image/png' or 'text/plain; charset=utf-8'")


def _extension(file_name: str) -> str:
    stem, dot, extension = file_name.replace("\\", "/").rpartition("/")[2].rpartition(".")
    return dot + extension.lower() if stem else ""


def _refines(named: str, sniffed: str) -> bool:
    if sniffed == _PLAIN:
        return named in _TEXTUAL or named.startswith("text/") or named.endswith(("+json", "+xml"))
    if sniffed == _ZIP:
        return named in _ZIPPED
    if sniffed == _OLE:
        return named in _IN_OLE
    return sniffed == UNKNOWN and named not in _ALWAYS_SIGNED


def _signed_mime(head: bytes) -> str | None:
    for offset, signature, mime in _SIGNATURES:
        if head.startswith(signature, offset):
            return mime
    if _PICKLE.match(head):
        return "application/x-python-pickle"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _zip_mime(head)
    return _ole_mime(head) if head.startswith(_OLE_SIGNATURE) else None


def _zip_mime(head: bytes) -> str:
    for name, method, body in _zip_entries(head):
        if name == b"mimetype" and (declared := _DECLARED.match(body)):
            return declared[0].decode("ascii")
        part = _OFFICE_PART.match(name) or (name in _OPEN_XML_INDEX and _INDEXED_PART.search(_unpacked(method, body)))
        if part:
            return _OFFICE[part[part.lastindex or 0]]
    return _ZIP


def _zip_entries(head: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, compression method and packed bytes of each entry, by its header: a zip inside the zip is not entered."""
    at = 0
    while head.startswith(b"PK\x03\x04", at) and at + _LOCAL_HEADER.size <= len(head):
        flags, method, size, name_size, extra_size = _LOCAL_HEADER.unpack_from(head, at)
        name_at = at + _LOCAL_HEADER.size
        body_at = name_at + name_size + extra_size
        streamed = flags & _HAS_DESCRIPTOR and not size
        yield (
            head[name_at : name_at + name_size],
            method,
            head[body_at:] if streamed else head[body_at : body_at + size],
        )
        at = head.find(b"PK\x03\x04", body_at) if streamed else body_at + size
        if at < 0:
            return


def _unpacked(method: int, body: bytes) -> bytes:
    if method != zlib.DEFLATED:
        return body
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, _INDEX_LIMIT)
    except zlib.error:
        return b""


def _ole_mime(head: bytes) -> str:
    for signature, mime in _OLE_STREAMS:
        if head.startswith(signature, 512):
            return mime
    for name, mime in _OLE_NAMES:
        if name.encode("utf-16-le") in head:
            return mime
    return _OLE


def _library_mime(head: bytes) -> str | None:
    near = head[:_NEAR]
    found: str | None = filetype.guess_mime(near)
    if found is None and near.startswith(b"ftyp", 4):
        return next(mime for brand, mime in _BRANDS if near.startswith(brand, 8))
    # Readers of PDF accept other bytes in front of it.
    return "application/pdf" if found is None and b"%PDF-" in near else found


def _text_mime(head: bytes, *, complete: bool) -> str | None:
    text = _decoded(head, complete=complete)
    if not text:
        return None
    start = text.lstrip()
    if start.startswith("<"):
        return _markup_mime(start)
    if start.startswith(("{", "[")) and _is_json(start, complete=complete):
        return "application/json"
    return _table_mime(text, complete=complete) or _PLAIN


def _decoded(head: bytes, *, complete: bool) -> str | None:
    """The text without its byte order mark, None when it is none; a character cut at the end is left out."""
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and len(head.translate(None, _CONTROL)) != len(head):
        return None
    decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")()
    try:
        text = decoder.decode(head, final=complete)
    except UnicodeDecodeError:
        return None
    return None if wide and _TEXT_CONTROL.search(text) else text


def _markup_mime(text: str) -> str:
    found = _MARKUP.match(text)
    root = (found["doctype"] or found["tag"]).lower() if found else ""
    if root in _HTML_TAGS:
        return "text/html"
    if root == "svg" or root.endswith(":svg"):
        return "image/svg+xml"
    return "text/xml" if text.startswith("<?xml") else _PLAIN


def _is_json(text: str, *, complete: bool) -> bool:
    try:
        # Numbers stay text: a long one would be refused, and none is needed.
        json.loads(text if complete else text[:_NEAR], parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        return not complete and _is_cut_json(error)
    except RecursionError:
        # Nested deeper than this parser goes, and nothing wrong up to there.
        return True
    return True


def _is_cut_json(error: json.JSONDecodeError) -> bool:
    """Whether the text was right up to its end: an open string, or a token that has only begun."""
    return error.msg.startswith("Unterminated string") or _CUT_TOKEN.fullmatch(error.doc, error.pos) is not None


def _table_mime(text: str, *, complete: bool) -> str | None:
    lines = text.splitlines(keepends=True)
    known = lines[:_TABLE_LINES] if complete or len(lines) > _TABLE_LINES else lines[:-1]
    for delimiter, mime in _DELIMITERS:
        # A delimiter and a space is how sentences are written.
        if delimiter in lines[0] and f"{delimiter} " not in lines[0] and _is_table(known, delimiter):
            return mime
    return None


def _is_table(lines: list[str], delimiter: str) -> bool:
    """Several rows of one width, under a header with no empty names but perhaps the first (an index column)."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return False
    width = len(rows[0]) if rows else 0
    enough = _CLEAR_TABLE if width > 2 else _CLEAR_NARROW_TABLE  # noqa: PLR2004 - two columns are the narrow table
    return width > 1 and len(rows) >= enough and all(rows[0][1:]) and all(len(row) == width for row in rows)
