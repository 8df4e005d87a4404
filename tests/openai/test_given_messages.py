"""Messages and tools as clients and data frames give them."""

from __future__ import annotations

from collections import UserDict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from mlflow.types.chat import ChatTool
from mlflow.types.llm import ChatMessage
from openai.types.chat import ChatCompletionMessage

from mlflow_phi3_onnx import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS
from mlflow_phi3_onnx.openai.fields import logit_bias, tools
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.openai.prompts import check_messages

if TYPE_CHECKING:
    from pathlib import Path

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "abc123def", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def test_messages_of_clients_are_messages() -> None:
    said = ChatCompletionMessage(role="assistant", content="Hello")
    called = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [CALL]}
    )
    given = [USER, said, called, ChatMessage(role="user", content="Hi")]
    assert check_messages(given) == (
        USER,
        {"role": "assistant", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        USER,
    )


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict])
def test_any_mapping_is_a_message_or_a_tool(kind: Any) -> None:
    assert check_messages([kind(USER)]) == (USER,)
    assert tools([kind(tool("f"))]) == (tool("f"),)


def test_a_tool_may_be_a_client_s_object() -> None:
    given = ChatTool.model_validate(tool("f", city={"type": "string"}))
    (taken,) = tools([given])
    assert taken["function"]["name"] == "f"
    assert taken["function"]["parameters"]["properties"] == {"city": {"type": "string"}}
    with pytest.raises(ValueError, match=r"^$"):
        tools([object()])


def test_a_former_function_call_is_refused_and_not_dropped() -> None:
    former = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    with pytest.raises(UnsupportedParameterError, match="Send the call in tool_calls") as caught:
        check_messages([USER, former])
    assert caught.value.param == "messages[1].function_call"
    assert check_messages([{**former, "function_call": None}])[0].keys() == {"role", "content"}


def test_token_ids_of_a_bias_may_be_numpy_s() -> None:
    assert logit_bias({np.int64(5): 1, "6": -2}) == {5: 1.0, 6: -2.0}


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_arrays_of_messages_are_messages(kind: Any) -> None:
    assert check_messages(kind([USER, USER])) == (USER, USER)


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant"}, ""),
        ({"role": "tool", "content": None, "tool_call_id": "abc123def"}, ""),
        ({"role": "assistant", "content": None, "refusal": "No."}, "No."),
        ({"role": "assistant", "content": "Yes.", "refusal": "No."}, "Yes."),
    ],
)
def test_what_was_not_said_is_empty(message: dict[str, Any], content: str) -> None:
    assert check_messages([USER, message])[1]["content"] == content


def test_objects_in_a_message_are_what_they_hold() -> None:
    """OpenAI's own examples put the calls of an answer into a message of their own."""
    said = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [CALL]}
    )
    again = {"role": "assistant", "content": None, "tool_calls": said.tool_calls}
    assert check_messages([USER, again]) == check_messages([USER, said])
    with pytest.raises(InvalidRequestError, match=r"messages\[0\] must be an object"):
        check_messages([ChatCompletionMessage])


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_a_question_needs_a_content(role: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].content .* it is missing"):
        check_messages([{"role": role, "content": None}])


def test_nulls_of_a_data_frame_change_nothing(tmp_path: Path) -> None:
    """Arrow gives every tool the arguments of all others, and every message the fields."""
    both = [tool("get_weather", city={"type": "string"}), tool("get_time", zone={"enum": ["a"]})]
    history = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    frame = pd.DataFrame({"messages": [history, [USER]], "tools": [both, both[:1]]})
    frame.to_parquet(tmp_path / "rows.parquet")
    row = pd.read_parquet(tmp_path / "rows.parquet").iloc[0]
    padded = row["tools"][0]["function"]["parameters"]["properties"]
    assert padded["zone"] is None
    plain: Any = [{**each} for each in row["tools"].tolist()]
    assert tools(as_lists(plain)) == tuple(both)
    assert check_messages(as_lists(row["messages"])) == check_messages(history)


NAMED = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("response_format", {"type": "json_object"}, SCHEMA),
        ("tool_choice", NAMED, ALLOWED),
        ("tool_choice", ALLOWED, NAMED),
        ("logit_bias", {"5": 1}, {"6": 2}),
        ("chat_template_kwargs", {"thinks": True}, {"day": "1 Jan"}),
    ],
)
def test_nulls_in_a_parameter_change_nothing(
    tmp_path: Path, name: str, one: Any, other: Any
) -> None:
    request = {"messages": [USER], "tools": [tool("f")], name: one}
    if name == "response_format":
        del request["tools"]
    pd.DataFrame({name: [one, other]}).to_parquet(tmp_path / "rows.parquet")
    padded = as_lists(pd.read_parquet(tmp_path / "rows.parquet")[name][0])
    assert padded != one
    assert parse_request({**request, name: padded}, CHAT) == parse_request(request, CHAT)


SEVERAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "names of keywords": (
        {key: {"type": "string"} for key in ("default", "const", "enum", "examples")},
        {"city": {"type": "string"}},
    ),
    "properties as a name": (
        {"properties": {"type": "object", "default": "x"}},
        {"properties": {"type": "object"}},
    ),
    "a constant": ({"a": {"const": "x", "type": "string"}}, {"a": {"type": "string"}}),
    "a constant of a list": ({"a": {"const": "x"}}, {"a": {"enum": ["x"]}}),
    "a default": ({"a": {"default": "x", "type": "string"}}, {"a": {"type": "string"}}),
}


@pytest.mark.parametrize(("one", "other"), SEVERAL.values(), ids=SEVERAL)
def test_nulls_of_a_data_frame_are_no_part_of_a_schema(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    both = [tool("f", **one), tool("g", **other)]
    pd.DataFrame({"tools": [both]}).to_parquet(tmp_path / "rows.parquet")
    padded = as_lists(pd.read_parquet(tmp_path / "rows.parquet")["tools"][0])
    assert padded != both
    assert tools(padded) == tuple(both)


def test_cells_of_a_data_frame_are_what_they_hold() -> None:
    cells = {"max_tokens": np.int64(3), "top_p": np.float32(0.5), "do_sample": np.bool_(True)}
    cells |= {"stop": np.array(["a"]), "stop_token_ids": pd.Series([5])}
    plain = {"max_tokens": 3, "top_p": 0.5, "do_sample": True, "stop": ["a"], "stop_token_ids": [5]}
    for given, prompt in (
        (np.array(["a", "b"]), ["a", "b"]),
        (pd.Series(["a"]), ["a"]),
        (np.array([5, 6]), [5, 6]),
        ([np.int64(5)], [5]),
    ):
        parsed = parse_request({"prompt": given, **cells}, COMPLETIONS)
        assert parsed == parse_request({"prompt": prompt, **plain}, COMPLETIONS)
    for wrong in (np.float64(2.5), np.bool_(True), np.int64(-1)):
        with pytest.raises(InvalidRequestError, match="max_tokens must be an integer from 0"):
            parse_request({"prompt": "a", "max_tokens": wrong}, COMPLETIONS)


def as_lists(value: Any) -> Any:
    """What arrays of a parquet file hold, as the rows of a pyfunc do."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value


def test_nulls_that_mean_something_stay() -> None:
    schema = {"default": None, "const": None, "enum": [None, 1], "examples": [None], "title": None}
    kept = {key: value for key, value in schema.items() if key != "title"}
    assert tools([tool("f", a=schema)]) == (tool("f", a=kept),)
    optional: list[dict[str, Any]] = [
        {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        {"type": ["string", "null"], "default": None},
        {"type": "STRING", "nullable": True, "default": None},
        {"type": "any", "const": None},
        {"type": "null", "enum": [None], "const": None},
    ]
    for part in [*optional, {"const": None}]:
        for name in ("a", "properties"):
            assert tools([tool("f", **{name: part})]) == (tool("f", **{name: part}),)
    arguments = {"a": None}
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    (message,) = check_messages([{"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_cells_as_arrow_and_ray_give_them_are_values(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    tools = [tool("f", city={"type": "string"})]
    request: Any = {"messages": [parts], "tools": tools, "stop": ["a", "b"], "max_tokens": 5}
    request["logit_bias"] = {"7": 1.5}
    pd.DataFrame([request]).to_parquet(tmp_path / "rows.parquet")
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    row: dict[str, Any] = {str(name): frame[name].to_numpy()[0] for name in frame}
    assert isinstance(row["stop"], np.ndarray)
    assert isinstance(row["messages"][0]["content"], np.ndarray)
    assert isinstance(row["max_tokens"], np.generic)
    assert parse_request(row, CHAT) == parse_request(request, CHAT)


@pytest.mark.parametrize("prompt", [[[1, 2], [3]], [1, 2], ["Hi", "Ho"]])
def test_arrays_of_prompts_are_prompts(prompt: list[Any]) -> None:
    inner = [np.array(item) if isinstance(item, list) else item for item in prompt]
    array = np.array(inner, dtype=None if isinstance(prompt[0], int) else object)
    given, plain = ({"prompt": each} for each in (array, prompt))
    assert parse_request(given, COMPLETIONS) == parse_request(plain, COMPLETIONS)


def test_a_number_that_is_none_is_refused_from_an_array_too() -> None:
    row = {"messages": np.array([USER]), "max_tokens": np.float32("nan")}
    with pytest.raises(InvalidRequestError, match=r"max_tokens must be .* got nan\.$"):
        parse_request(row, CHAT)
