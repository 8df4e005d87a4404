"""Inputs to the server's JSON, and its answers to predictions or errors."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from mlflow.deployments import PredictionsResponse
from mlflow.exceptions import get_error_code
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import (
    GenAIError,
    InvalidRequestError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SCORING_KEYS = frozenset({"dataframe_split", "dataframe_records", "instances", "inputs"})
"""The keys of MLflow's scoring payloads."""
REQUEST_KEYS = frozenset({"messages", "prompt", "input"})
"""The keys that make MLflow's server take a body as one request to a language model."""

_REFUSALS = frozenset({400, 413, 415, 422})

# MLflow's server quotes the whole input in some of its messages.
_QUOTES = (
    re.compile(r"Failed to predict data '.*'\. \nError: ", re.DOTALL),
    re.compile(r"(?<=of data) '.*'(?= with schema)", re.DOTALL),
    re.compile(r"(?<=Input: \n).*", re.DOTALL),
)
# A word in a request ("assistant", "json_schema") is one that a message may need.
_LONGEST_WORD = 32


def to_payload(inputs: Any) -> dict[str, Any]:
    """Turn inputs into a body for ``/invocations``.

    Args:
        inputs: A scoring payload or a request as a dict (sent as it is), other dicts (sent as
            ``inputs``), a DataFrame, a Series, an array, a list of requests or of values, or one
            text.

    Returns:
        A dict of JSON values only: NaN, NaT and NA are None, NumPy values are Python's.

    Raises:
        InvalidRequestError: There are no inputs, or JSON cannot hold them.
        UnsupportedParameterError: The request asks for a stream.
    """
    if inputs is None:
        raise InvalidRequestError("predict needs inputs; they are None.", param="inputs")
    payload = _wrap(inputs)
    if payload.get("stream"):
        raise UnsupportedParameterError(
            "stream cannot be honoured in inputs: predict returns whole answers. Leave it out, or"
            " use predict_stream.",
            param="stream",
        )
    return cast("dict[str, Any]", _to_json_value(payload))


def to_request(inputs: Any, *, stream: bool = False) -> dict[str, Any]:
    """Turn the inputs of an endpoint into a body, which is one request.

    Args:
        inputs: What came.
        stream: Whether its answer is to be a stream.

    Raises:
        InvalidRequestError: They are none, or JSON cannot hold them.
        UnsupportedParameterError: The request asks for a stream where it gets none.
    """
    if not isinstance(inputs, dict) or not inputs.keys() & {"messages", "prompt"}:
        raise InvalidRequestError(
            "inputs must be one request, a dict with messages or prompt; got"
            f" {describe_kind(inputs)}. For rows, use predict with deployment_name.",
            param="inputs",
        )
    given = cast("dict[str, Any]", inputs)
    return {**_to_json_value(given), "stream": True} if stream else to_payload(given)


def to_object(body: bytes) -> dict[str, Any]:
    """The object that the server answered one request with, or sent as an event.

    Raises:
        GenAIError: The body is no JSON object, or is an error.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise GenAIError("The server's answer is no JSON object.")
    if "error" in answer:
        told = cast("dict[str, Any]", answer["error"])
        raise GenAIError(f"The server ended the stream: {told['message']}")
    return cast("dict[str, Any]", answer)


def to_response(body: bytes) -> PredictionsResponse:
    """The predictions in what the server answered, under the key ``predictions``.

    Raises:
        GenAIError: The body is not JSON.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        raise GenAIError("The server's answer is not JSON.") from None
    if isinstance(answer, dict) and "predictions" in answer:
        return PredictionsResponse(cast("dict[str, Any]", answer))
    return PredictionsResponse({"predictions": answer})


def to_error(status: int, body: bytes, payload: dict[str, Any], timeout: int) -> GenAIError:
    """The error for a status that is not 200, with the server's own message but without any input.

    Args:
        status: The HTTP status.
        body: What came with it.
        payload: What was sent, to recognise it in the message.
        timeout: The server's limit for one request, in seconds.
    """
    code = ErrorCode.Name(get_error_code(status))
    message, param = body.decode("utf-8", errors="replace"), None
    try:
        answer = json.loads(message)
        if "error" in answer:  # OpenAI's form, of this package's server
            param, message = answer["error"]["param"], str(answer["error"]["message"])
        else:
            message = str(answer["message"])
            code = ErrorCode.Name(ErrorCode.Value(answer["error_code"]))
    except (ValueError, KeyError, TypeError):
        pass  # neither: the text and the status say what there is
    if status == 504:
        message += f" ({timeout} s). The deployment config's 'timeout' raises it."
    kind = InvalidRequestError if status in _REFUSALS else GenAIError
    return kind(
        f"The server answered {status}: {_without_inputs(message, payload)}",
        param=param,
        error_code=code,
    )


def _wrap(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, pd.DataFrame):
        return _wrap_frame(inputs)
    if isinstance(inputs, dict):
        given = cast("dict[str, Any]", inputs)
        return given if given.keys() & (SCORING_KEYS | REQUEST_KEYS) else {"inputs": given}
    if isinstance(inputs, str):
        return {"inputs": [inputs]}
    if isinstance(inputs, (np.ndarray, pd.Series)):
        return {"inputs": inputs.tolist()}
    if isinstance(inputs, (list, tuple)):
        rows = list(cast("list[Any]", inputs))
        all_records = bool(rows) and all(isinstance(row, dict) for row in rows)
        return {"dataframe_records" if all_records else "inputs": rows}
    raise InvalidRequestError(
        "inputs must be a dict, a DataFrame, a list, an array or a text; got"
        f" {describe_kind(inputs)}.",
        param="inputs",
    )


def _wrap_frame(frame: pd.DataFrame) -> dict[str, Any]:
    """One request per row, or the one request that pandas has taken apart.

    ``mlflow deployments predict`` reads its file with ``pandas.read_json``, which makes a row of
    every message of ``{"messages": [...]}``.
    """
    columns = list(frame.columns)
    rows = cast("list[list[Any]]", _to_json_value(frame.to_dict(orient="split")["data"]))
    place = columns.index("messages") if "messages" in columns else None
    messages = [] if place is None else [row[place] for row in rows]
    if not messages or not all(isinstance(message, dict) for message in messages):
        return {"dataframe_split": {"columns": columns, "data": rows}}
    request: dict[str, Any] = {"messages": messages}
    for position, column in enumerate(columns):
        values = [row[position] for row in rows]
        if column == "messages":
            continue
        if any(isinstance(value, (dict, list)) or value != values[0] for value in values):
            raise InvalidRequestError(
                f"A DataFrame with one message per row cannot tell what {column!r} was. Write "
                'the input as a list of requests: [{"messages": [...], ...}].',
                param=str(column),
            )
        request[str(column)] = values[0]
    return request


def _to_json_value(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {str(key): _to_json_value(item) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_to_json_value(item) for item in cast("list[Any]", value)]
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.encodebytes(value).decode("ascii")  # as MLflow reads binary columns
    if isinstance(value, float):
        if math.isinf(value):
            raise InvalidRequestError("JSON has no infinite numbers.", param="inputs")
        return None if math.isnan(value) else value
    if not isinstance(value, (str, bool, int)):
        raise InvalidRequestError(
            f"inputs must hold what JSON can; got {describe_kind(value)}.", param="inputs"
        )
    return value


def _without_inputs(message: str, payload: dict[str, Any]) -> str:
    for quote in _QUOTES:
        message = quote.sub("", message)
    for text in sorted(set(_texts(payload)), key=len, reverse=True):
        for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1]):
            message = message.replace(form, "...")
    return message


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) > _LONGEST_WORD or len(value.split()) > 1:
            yield value
    elif isinstance(value, dict):
        for item in cast("dict[str, Any]", value).values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _texts(item)
