import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bdr.execution import (
    ConnectionKind,
    DataSource,
    ExecutionData,
    ExecutionDataItems,
    ExecutionDataMap,
    NodeConnectionKind,
)
from bdr.reference import BinaryDataReference, BinaryFileKind
from tests.unit.test_reference import JSON_VALUES, REFERENCES, TEXTS

SOURCE = DataSource(node_name="files", output_port=ConnectionKind.MAIN, output_index=0)
MAP = TypeAdapter[ExecutionDataMap](ExecutionDataMap)
ITEMS = TypeAdapter[ExecutionDataItems](ExecutionDataItems)

TODAY = [
    "main", "ai_agent", "ai_tool", "ai_language_model", "ai_memory", "ai_output_parser", "ai_document", "ai_embedding",
    "ai_retriever", "ai_vector_store", "ai_reranker", "ai_text_splitter",
]  # fmt: skip
NUMBERS = {
    1: "main", 2: "error", 101: "ai_agent", 111: "ai_tool", 121: "ai_language_model", 122: "ai_output_parser",
    123: "ai_memory", 131: "ai_document", 132: "ai_embedding", 133: "ai_retriever", 134: "ai_vector_store",
    135: "ai_reranker", 136: "ai_text_splitter",
}  # fmt: skip
OLD_NAMES = {"ai_model": "ai_language_model", "ai_l_m": "ai_language_model", "ai_lm": "ai_language_model"}
OLD = [*NUMBERS.items(), *((str(number), name) for number, name in NUMBERS.items()), *OLD_NAMES.items()]

SOURCES = st.builds(
    DataSource, node_name=TEXTS, output_port=st.sampled_from(ConnectionKind), output_index=st.integers(0, 2**64 - 1)
)
ITEM = st.builds(ExecutionData, json=JSON_VALUES, binary=st.none() | REFERENCES, source=st.none() | SOURCES)


def test_a_file_on_its_way() -> None:
    reference = BinaryDataReference(file_key="k", mime_kind="image/png", file_size=3, file_kind=BinaryFileKind.IMAGE)
    data = ExecutionData.new_binary(reference, SOURCE)
    assert data.binary is reference
    assert data.model_dump_json() == (
        '{"json":null,"binary":{"file_key":"k","mime_kind":"image/png","file_size":3,"file_name":null,'
        '"file_kind":"image","file_extension":null,"directory":null},'
        '"source":{"node_name":"files","output_port":"main","output_index":0}}'
    )


def test_a_value_on_its_way() -> None:
    data = ExecutionData.new_json({"a": [1, None, "é"]})
    assert data.json == {"a": [1, None, "é"]}
    assert data.model_dump_json() == '{"json":{"a":[1,null,"é"]},"binary":null,"source":null}'


def test_what_is_absent_or_unknown_is_read_leniently() -> None:
    assert ExecutionData.model_validate_json('{"json": 1}') == ExecutionData.new_json(1)
    assert ExecutionData.model_validate_json('{"json": 1, "new": 2, "binary": null}') == ExecutionData.new_json(1)


def test_today_s_kinds_are_written_as_they_are() -> None:
    assert [kind.value for kind in ConnectionKind if kind is not ConnectionKind.ERROR] == TODAY
    assert NodeConnectionKind is ConnectionKind
    for name in [*TODAY, "error"]:
        text = f'{{"node_name":"n","output_port":"{name}","output_index":0}}'
        assert DataSource.model_validate_json(text).model_dump_json() == text


@pytest.mark.parametrize(("old", "name"), OLD)
def test_old_spellings_are_read_and_written_as_today_s(old: int | str, name: str) -> None:
    text = json.dumps({"json": None, "source": {"node_name": "n", "output_port": old, "output_index": 3}})
    data = ExecutionData.model_validate_json(text)
    assert data.source is not None
    assert data.source.output_port is ConnectionKind(name)
    assert json.loads(data.model_dump_json())["source"]["output_port"] == name
    assert ExecutionData.model_validate_json(data.model_dump_json()) == data


@pytest.mark.parametrize(("old", "name"), OLD)
def test_old_spellings_are_read_as_keys_of_a_map(old: int | str, name: str) -> None:
    read = MAP.validate_json(json.dumps({str(old): [None, [{"json": 1}], []]}))
    assert read == {ConnectionKind(name): [None, [ExecutionData.new_json(1)], []]}
    assert json.loads(MAP.dump_json(read)) == {name: [None, [{"json": 1, "binary": None, "source": None}], []]}


@pytest.mark.parametrize("wrong", [True, False, 0, 3, 1.0, "Main", "", "01", " 1", None, [], "ai"])
def test_what_was_never_a_kind(wrong: object) -> None:
    text = json.dumps({"node_name": "n", "output_port": wrong, "output_index": 0})
    with pytest.raises(ValidationError, match="output_port"):
        DataSource.model_validate_json(text)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, object(), b"x", {1: 2}])
def test_what_json_cannot_hold(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        ExecutionData.new_json(wrong)


def test_a_negative_index() -> None:
    with pytest.raises(ValidationError, match="output_index"):
        DataSource(node_name="n", output_port=ConnectionKind.MAIN, output_index=-1)


@given(ITEM)
def test_items_come_back_as_they_were(item: ExecutionData) -> None:
    written = item.model_dump_json()
    assert list(json.loads(written)) == ["json", "binary", "source"]
    assert ExecutionData.model_validate_json(written) == item


@given(st.none() | st.lists(ITEM, max_size=3))
def test_lists_of_items_come_back_as_they_were(items: ExecutionDataItems) -> None:
    assert ITEMS.validate_json(ITEMS.dump_json(items)) == items
