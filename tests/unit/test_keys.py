import base64
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.keys import MAX_KEY_LENGTH, encode, is_file_key, new_file_key, new_id, object_path


def test_keys_are_unique_and_sort_by_time() -> None:
    keys = [new_file_key() for _ in range(5000)]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    assert all(is_file_key(key) for key in keys)


@given(st.uuids(), st.uuids())
def test_encoded_ids_sort_as_the_ids_do(one: uuid.UUID, other: uuid.UUID) -> None:
    assert (encode(one) < encode(other)) == (one < other)
    assert (encode(one) == encode(other)) == (one == other)
    assert encode(one) == base64.b32hexencode(one.bytes).decode("ascii").rstrip("=").lower()


@given(st.none() | st.text(max_size=40))
def test_nothing_from_outside_is_in_a_key_but_a_plain_extension(extension: str | None) -> None:
    key = new_file_key(extension)
    assert is_file_key(key)
    assert len(key) <= MAX_KEY_LENGTH
    assert re.fullmatch(r"[a-z0-9.]+", key)


@pytest.mark.parametrize(
    ("extension", "kept"),
    [
        ("pdf", ".pdf"), ("PDF", ".pdf"), ("7z", ".7z"), ("a" * 16, "." + "a" * 16), ("a" * 17, ""), ("", ""),
        (None, ""), ("p df", ""), ("../x", ""), ("pdf\n", ""), ("\u017f", ""), ("é", ""), ("\u0663", ""),
        ("a\x00", ""), ("a.b", ""),
    ],
)  # fmt: skip
def test_extensions(extension: str | None, kept: str) -> None:
    assert new_file_key(extension)[26:] == kept


@pytest.mark.parametrize(
    "text",
    ["", "a", "A" * 26, "w" * 26, "0" * 25, "0" * 27, "0" * 26 + ".", "0" * 26 + ".PDF", "0" * 26 + "." + "a" * 17,
     "0" * 26 + "\n", "0" * 26 + ".pdf\n", "../" + "0" * 23, "0" * 26 + "\x00", "\u0660" * 26],
)  # fmt: skip
def test_what_is_no_key(text: str) -> None:
    assert not is_file_key(text)


@given(st.uuids())
def test_object_paths_hold_only_plain_characters(blob_id: uuid.UUID) -> None:
    assert re.fullmatch(r"[0-9a-f]{2}/[0-9a-v]{26}", object_path(blob_id))


def test_objects_spread_over_their_folders() -> None:
    folders = [object_path(new_id()).partition("/")[0] for _ in range(5000)]
    assert len(set(folders)) == 256
