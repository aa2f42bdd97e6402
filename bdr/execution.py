"""hetumind's envelope: what a node hands to the next one, as JSON that both sides read."""

import warnings
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bdr.reference import BinaryDataReference


class ConnectionKind(StrEnum):
    """Through which kind of port data came.

    Written as today's names; the spellings of earlier generations are read too: numbers (as map keys they are
    strings), `ai_model`, `ai_l_m` and `ai_lm`. `error` is of an earlier generation and stays `error`.
    """

    MAIN = "main"
    ERROR = "error"
    AI_AGENT = "ai_agent"
    AI_TOOL = "ai_tool"
    AI_LANGUAGE_MODEL = "ai_language_model"
    AI_MEMORY = "ai_memory"
    AI_OUTPUT_PARSER = "ai_output_parser"
    AI_DOCUMENT = "ai_document"
    AI_EMBEDDING = "ai_embedding"
    AI_RETRIEVER = "ai_retriever"
    AI_VECTOR_STORE = "ai_vector_store"
    AI_RERANKER = "ai_reranker"
    AI_TEXT_SPLITTER = "ai_text_splitter"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        # By its text: True and 1.0 equal 1, but neither was ever a kind.
        name = _OLD_SPELLINGS.get(str(value))
        return None if name is None else cls(name)


_OLD_SPELLINGS = {
    "1": "main",
    "2": "error",
    "101": "ai_agent",
    "111": "ai_tool",
    "121": "ai_language_model",
    "122": "ai_output_parser",
    "123": "ai_memory",
    "131": "ai_document",
    "132": "ai_embedding",
    "133": "ai_retriever",
    "134": "ai_vector_store",
    "135": "ai_reranker",
    "136": "ai_text_splitter",
    "ai_model": "ai_language_model",
    "ai_l_m": "ai_language_model",
    "ai_lm": "ai_language_model",
}

NodeConnectionKind = ConnectionKind


class DataSource(BaseModel):
    """Which node's output the data came from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_name: str
    output_port: ConnectionKind
    output_index: Annotated[int, Field(ge=0)]


with warnings.catch_warnings():
    # The field's name is hetumind's; what it hides is a method that pydantic deprecated long ago.
    warnings.filterwarnings("ignore", message='Field name "json" in "ExecutionData" shadows', category=UserWarning)

    class ExecutionData(BaseModel):
        """One item on its way between nodes: a JSON value, or a file by reference, and where it came from.

        Its JSON has exactly `json`, `binary` and `source`, absent values as null.
        """

        # JSON has no NaN or infinity; written as null they would come back as something else.
        model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

        json: JsonValue = None  # type: ignore[assignment]  # hides the deprecated method, see above
        binary: BinaryDataReference | None = None
        source: DataSource | None = None

        @classmethod
        def new_json(cls, value: JsonValue, source: DataSource | None = None) -> Self:
            """An item that is a JSON value."""
            return cls(json=value, source=source)

        @classmethod
        def new_binary(cls, reference: BinaryDataReference, source: DataSource | None = None) -> Self:
            """An item that is a file; its JSON value is null."""
            return cls(binary=reference, source=source)


ExecutionDataItems = list[ExecutionData] | None
"""What one output of a node gave: its items, or null when it gave nothing."""

ExecutionDataMap = dict[ConnectionKind, list[ExecutionDataItems]]
"""By kind of port, what each output of that kind gave, in the order of their indices."""
