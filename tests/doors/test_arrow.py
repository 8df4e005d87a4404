"""Rows that went through Arrow, which makes floats of integers that other rows lack."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest

from mlflow_phi3_onnx import save_model
from mlflow_phi3_onnx.flavor.rows import rows
from tests.support.forms import schema_format
from tests.support.tool_cases import SPAIN, closed, named, tool

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.pyfunc import PyFuncModel

CODE = {"type": "string", "minLength": 2, "maxLength": 3}
TOOLS = [tool("f", closed(a=CODE)), tool("g", closed(b={"type": "integer", "default": 3}))]
TEXT = {"type": "object", "properties": {"a": CODE}, "additionalProperties": False}


def called(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        *SPAIN,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Madrid"},
    ]


def round_trip(folder: Path, **columns: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = pd.DataFrame(columns)
    frame.to_parquet(folder / "rows.parquet")
    return frame, pd.read_parquet(folder / "rows.parquet")


@pytest.fixture(scope="module")
def chat(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> PyFuncModel:
    folder = tmp_path_factory.mktemp("chat")
    save_model(demo, folder / "m", model_config={"max_tokens": 40, "temperature": 0})
    return mlflow.pyfunc.load_model(str(folder / "m"))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tool_choice": named("f")},
        {"tool_choice": named("g"), "stop": ["never"]},
    ],
    ids=["free", "forced", "beside a list of the caller's own"],
)
def test_tools_give_the_same_prompt_and_calls(
    chat: PyFuncModel, tmp_path: Path, more: dict[str, Any]
) -> None:
    frame, back = round_trip(tmp_path, messages=[SPAIN], tools=[TOOLS])
    assert '"minLength": 2.0' in str(back["tools"][0]).replace("'", '"')
    answers = [
        chat.predict(each.assign(**{name: [value] for name, value in more.items()}))[0]
        for each in (frame, back)
    ]
    one, other = (
        [
            answer["usage"]["prompt_tokens"],
            answer["choices"][0]["message"]["content"],
            [call["function"] for call in answer["choices"][0]["message"].get("tool_calls") or []],
        ]
        for answer in answers
    )
    assert one == other


def test_the_arguments_of_a_history_are_what_they_were(tmp_path: Path) -> None:
    frame, back = round_trip(tmp_path, messages=[called({"a": "x", "n": 5}), called({"a": "y"})])
    shown, expected = (rows(each, "llm/v1/chat")[0]["messages"][1] for each in (back, frame))
    assert json.dumps(shown["tool_calls"]) == json.dumps(expected["tool_calls"])


def test_a_cell_without_a_list_is_told_by_the_row_s_others(
    chat: PyFuncModel, tmp_path: Path
) -> None:
    forms = [schema_format(TEXT), schema_format({"type": "object", "properties": {}})]
    kwargs = [{"budget": 5}, {"day": "1 Jan"}]
    frame, back = round_trip(
        tmp_path, messages=[SPAIN, SPAIN], response_format=forms, chat_template_kwargs=kwargs
    )
    row = rows(back, "llm/v1/chat")[0]
    assert json.dumps(row["chat_template_kwargs"]) == '{"budget": 5, "day": null}'
    code = row["response_format"]["json_schema"]["schema"]["properties"]["a"]
    assert json.dumps(code) == json.dumps(CODE)
    one, other = (
        [answer["choices"][0]["message"]["content"] for answer in chat.predict(each)]
        for each in (frame.drop(columns="chat_template_kwargs"), back.drop(columns=back.columns[2]))
    )
    assert one == other


def test_what_did_not_go_through_arrow_stays_a_float(tmp_path: Path) -> None:
    frame, _ = round_trip(
        tmp_path, messages=[called({"n": 5.0})], chat_template_kwargs=[{"n": 5.0}]
    )
    (row,) = rows(frame, "llm/v1/chat")
    assert json.dumps(row["chat_template_kwargs"]) == '{"n": 5.0}'
    assert json.dumps(row["messages"][1]["tool_calls"][0]["function"]["arguments"]) == '{"n": 5.0}'


def test_a_float_that_is_no_integer_or_has_lost_digits_stays_one(tmp_path: Path) -> None:
    numbers = {"half": 0.5, "large": 2**60 + 1, "small": -(2**53) + 1}
    _, back = round_trip(tmp_path, messages=[called(numbers), called({"a": "y"})])
    row = rows(back, "llm/v1/chat")[0]
    shown = row["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert {name: repr(shown[name]) for name in numbers} == {
        "half": "0.5",
        "large": "1.152921504606847e+18",
        "small": "-9007199254740991",
    }
