"""Whatever a BinaryDataMetadata accepts can be stored, and comes back as it was."""

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bdr import BinaryDataLifecycleManager, BinaryDataMetadata, BinaryFileKind
from bdr.reference import MAX_DIRECTORY_LENGTH, MAX_LABELS_SIZE, MAX_NAME_LENGTH

FIRST_SECOND, LAST_SECOND = -62_135_596_799, 253_402_300_799
# All of Unicode but what is refused; the unit tests show that it is.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
AWKWARD = st.sampled_from(
    [
        "../../etc/passwd",
        "C:\\Users\\me\\a.tar.gz",
        "two\nlines\r.txt",
        "\u202efdp.exe",
        "😀/👩‍👩‍👧.PDF",
        "'; DROP TABLE bdr.blob; --",
        "[bold]%s {0}[/bold]",
        "x" * MAX_NAME_LENGTH,
        "é\u0301 \\u0000",
        " ",
        "",
    ]
)
NAMES = AWKWARD | st.text(CHARACTERS, max_size=40)
NUMBERS = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | AWKWARD | st.text(CHARACTERS, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
MIME = st.sampled_from(["text/html; charset=utf-8", 'a/b; c="d;e"', "APPLICATION/PDF"]) | st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,30}/[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}( ?; ?[a-z]{1,9}=[a-z0-9-]{1,9})?",
    fullmatch=True,
)


def or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def accepted(values: dict[str, Any]) -> BinaryDataMetadata | None:
    """None when it is refused: labels may be too large."""
    try:
        return BinaryDataMetadata(**values)
    except ValidationError:
        return None


METADATA = (
    st.fixed_dictionaries(
        {
            "file_name": or_none(NAMES),
            "mime_type": or_none(MIME),
            "last_modified": or_none(st.integers(FIRST_SECOND, LAST_SECOND)),
            "file_kind": or_none(st.sampled_from(BinaryFileKind)),
            "file_extension": or_none(NAMES),
            "directory": or_none(NAMES | st.just("d" * MAX_DIRECTORY_LENGTH)),
            "namespace": or_none(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", fullmatch=True)),
            "labels": st.dictionaries(NAMES, JSON, max_size=4),
        }
    )
    .map(accepted)
    .filter(bool)
)


def as_json(metadata: BinaryDataMetadata) -> dict[str, str]:
    """Each field that says something, as JSON, in which 1, 1.0 and true are different."""
    said = {name: value for name, value in metadata.model_dump().items() if value not in (None, "")}
    return {name: json.dumps(value, sort_keys=True) for name, value in said.items()}


# Not made smaller when it fails: each try stores it all again.
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(METADATA, min_size=1, max_size=25))
@example([BinaryDataMetadata(labels={"x" * 100: "y" * (MAX_LABELS_SIZE - 107)})])
@example(
    [BinaryDataMetadata(labels={"n": [1e23, -1.5e300, 1e22, 1.2345678901234567e16, 5e-324, -0.0, 1.0, 10**40, True]})]
)
@example([BinaryDataMetadata(labels={"n": [1e308] * 50})])
@example([BinaryDataMetadata(last_modified=FIRST_SECOND), BinaryDataMetadata(last_modified=LAST_SECOND)])
async def test_all_that_is_accepted_is_stored_and_comes_back_as_it_was(
    binary: BinaryDataLifecycleManager, described: list[BinaryDataMetadata]
) -> None:
    references = await asyncio.gather(*(binary.store_data(b"x", metadata) for metadata in described))
    found = await asyncio.gather(*(binary.get_metadata(reference.file_key) for reference in references))
    for given_, stored, reference in zip(described, found, references, strict=True):
        assert as_json(stored).items() >= as_json(given_).items()
        assert stored.file_size == 1
        # What comes back can be stored again, and then is the same.
        assert BinaryDataMetadata.model_validate(stored.model_dump()) == stored
        assert (await binary.get_reference(reference.file_key)) == reference
