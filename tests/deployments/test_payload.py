"""Inputs to JSON, and answers to predictions and errors."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_phi3_onnx.deployments.payload import to_error, to_object, to_payload, to_response
from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError

PROMPT = "What is the capital of Spain?"
MESSAGE = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("inputs", "payload"),
    [
        ({"prompt": "a", "top_p": np.float32(0.5)}, {"prompt": "a", "top_p": 0.5}),
        ({"inputs": np.array([1, 2])}, {"inputs": [1, 2]}),
        ({"a": [float("nan"), 1]}, {"inputs": {"a": [None, 1]}}),
        ("a", {"inputs": ["a"]}),
        (["a", "b"], {"inputs": ["a", "b"]}),
        ([], {"inputs": []}),
        (pd.Series([1.5, None]), {"inputs": [1.5, None]}),
        ([{"prompt": "a"}], {"dataframe_records": [{"prompt": "a"}]}),
        (
            pd.DataFrame({"n": [1, None], "t": [pd.Timestamp("2026-01-02"), pd.NaT]}, index=[7, 9]),
            {
                "dataframe_split": {
                    "columns": ["n", "t"],
                    "data": [[1.0, "2026-01-02T00:00:00"], [None, None]],
                }
            },
        ),
        (
            pd.DataFrame({"m": [np.array([MESSAGE], dtype=object)], "i": [np.int64(3)]}),
            {"dataframe_split": {"columns": ["m", "i"], "data": [[[MESSAGE], 3]]}},
        ),
        (
            pd.DataFrame({"messages": [MESSAGE, MESSAGE], "max_tokens": 5, "stop": None}),
            {"messages": [MESSAGE, MESSAGE], "max_tokens": 5, "stop": None},
        ),
        ({"inputs": [b"\x00", dt.date(2026, 1, 2)]}, {"inputs": ["AA==\n", "2026-01-02"]}),
    ],
)
def test_payloads(inputs: Any, payload: dict[str, Any]) -> None:
    assert json.loads(json.dumps(to_payload(inputs), allow_nan=False)) == payload


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "None"),
        (7, "; got 7\\.$"),
        ({"inputs": [float("inf")]}, "infinite"),
        ({"inputs": object()}, "must hold what JSON can; got an object"),
        (pd.DataFrame({"messages": [MESSAGE], "tools": [{"type": "function"}]}), "'tools'"),
        (pd.DataFrame({"messages": [MESSAGE, MESSAGE], "stop": ["a", "b"]}), "'stop'"),
    ],
)
def test_inputs_that_json_cannot_hold(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        to_payload(inputs)


@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ({"predictions": [1]}, [1]),
        ([{"choices": []}], [{"choices": []}]),
        ({"choices": []}, {"choices": []}),
    ],
)
def test_answers(body: Any, predictions: Any) -> None:
    assert to_response(json.dumps(body).encode())["predictions"] == predictions


@pytest.mark.parametrize(
    "message",
    [
        f"Failed to predict data '   messages\n0  [{PROMPT[:9]}...'. \nError: role is missing",
        f"Failed to enforce schema of data '{[PROMPT]}' with schema '[x]'. Error: role is missing",
        f"Can not convert value `{PROMPT}`: role is missing",
        f"Can not convert value {json.dumps(PROMPT)}: role is missing",
    ],
)
def test_errors_never_quote_the_inputs(message: str) -> None:
    body = {"error_code": "INVALID_PARAMETER_VALUE", "message": message, "stack_trace": PROMPT}
    payload = {"messages": [{"role": "user", "content": PROMPT}]}
    error = to_error(400, json.dumps(body).encode(), payload, 60)
    assert isinstance(error, InvalidRequestError)
    assert "role is missing" in str(error)
    assert PROMPT[:9] not in str(error)


def test_a_text_that_begins_like_another_is_not_quoted_either() -> None:
    secret = f"{PROMPT} My password is hunter2."
    payload = {"messages": [{"content": PROMPT}, {"content": secret}]}
    body = json.dumps({"error_code": "BAD_REQUEST", "message": f"no role in '{secret}'"})
    error = to_error(400, body.encode(), payload, 60)
    assert "no role in '...'" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (504, b"Request processing time exceeded limit", "DEADLINE_EXCEEDED", "(60 s)"),
        (500, b"Internal Server Error", "INTERNAL_ERROR", "Internal Server Error"),
        (400, b'{"error_code": "NEW", "message": "no"}', "BAD_REQUEST", "no"),
        (
            429,
            b'{"error": {"message": "full", "type": "a", "param": null, "code": "q"}}',
            "RESOURCE_EXHAUSTED",
            "answered 429: full",
        ),
    ],
)
def test_errors_that_are_not_mlflows(status: int, body: bytes, code: str, message: str) -> None:
    error = to_error(status, body, {}, 60)
    assert error.error_code == code
    assert message in str(error)
    assert str(status) in str(error)


def test_an_error_in_a_stream_is_raised() -> None:
    told = {"error": {"message": "too late", "type": "server_error", "param": None, "code": None}}
    with pytest.raises(GenAIError, match="ended the stream: too late"):
        to_object(json.dumps(told).encode())
    for body in (b"no", b"[]"):
        with pytest.raises(GenAIError, match="no JSON object"):
            to_object(body)
