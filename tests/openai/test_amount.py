"""A request that holds too much is refused before anything is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_phi3_onnx import InvalidRequestError
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.openai.amount import MAX_VALUES, check_amount
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.openai.responses_api.history import History
from mlflow_phi3_onnx.openai.responses_api.request import read_request

USER = {"role": "user", "content": "Hi"}
EMPTY = {"type": "text", "text": ""}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAID = {"role": "assistant", "content": None, "tool_calls": [CALL] * 20}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{**USER, "content": [EMPTY] * MAX_VALUES}]}, "messages"),
        ({"messages": [{**USER, "x": ["<|end|>"] * MAX_VALUES}]}, "messages"),
        ({"messages": [{**USER, "x": {str(i): [] for i in range(MAX_VALUES)}}]}, "messages"),
        ({"messages": [USER, SAID] * 5000}, "messages"),
        ({"prediction": {"type": "content", "content": [EMPTY] * MAX_VALUES}}, "prediction"),
        ({"chat_template_kwargs": {"x": [0] * MAX_VALUES}}, "chat_template_kwargs"),
        ({"tools": [{"type": "function", "function": {"x": [0] * MAX_VALUES}}]}, "tools"),
    ],
)
def test_a_field_of_too_many_values_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{param} must hold at most 131,072") as caught:
        parse_request({"messages": [USER], **fields}, CHAT)
    assert caught.value.param == param
    if "messages" not in fields:  # beside the request, too
        with pytest.raises(InvalidRequestError, match=f"^{param} must hold at most 131,072"):
            parse_request({"messages": [USER]}, CHAT, params=fields)


def test_the_input_of_a_response_is_judged_alike() -> None:
    items = [{"role": "user", "content": [{"type": "no"}] * MAX_VALUES}]
    with pytest.raises(InvalidRequestError, match=r"^input must hold at most 131,072"):
        read_request({"input": items}, History())


def test_the_longest_conversation_is_taken() -> None:
    said = {**SAID, "tool_calls": [CALL]}
    told = {"role": "tool", "content": "1", "tool_call_id": "x", "name": "f"}
    asked = parse_request({"messages": [USER, said, told, USER] * 2500}, CHAT)
    assert len(asked.prompts) == 1


def test_a_value_that_holds_itself_has_an_end() -> None:
    endless: list[Any] = []
    endless += [endless, endless]
    with pytest.raises(InvalidRequestError, match="at most 131,072 values"):
        check_amount(endless, "messages")
