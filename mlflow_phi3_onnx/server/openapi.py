"""What the routes' OpenAPI document says, of the tables that requests are checked with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from mlflow_phi3_onnx.openai.prompts import MESSAGES, PROMPT
from mlflow_phi3_onnx.openai.responses_api.fields import FIELDS, GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import APIRouter

    from mlflow_phi3_onnx.core.options import Option

__all__ = ["CHUNKS", "INVOCATION", "completion_body", "described", "option_body", "response_body"]

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""The body of every error."""

CHUNKS = {"text/event-stream": {"schema": {"type": "string"}}}
"""What a response may be beside JSON: with ``stream``, events that hold one chunk each."""

_REFUSALS = {
    "400": "A field is not what it may be.",
    "401": "The key is missing or unknown.",
    "403": "The server may not be asked for by that name.",
    "404": "There is no such model.",
    "405": "The path does not take this method.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "429": "The queue is full, or the memory is too little for the request.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "503": "The server is ending, or the model cannot be loaded.",
    "504": "The request was not finished in time.",
}
_WITHOUT_BODY = ("401", "403", "404", "405", "431", "500", "503")

_INPUT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "object"}, "minItems": 1},
    ]
}


def described(
    router: APIRouter,
    method: str,
    path: str,
    answer: Callable[..., Any],
    about: str,
    body: Mapping[str, Any] | None = None,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Add a route, with what the document says of it.

    FastAPI gets no model of the body: it would check, change and drop fields, which is for the
    parser to do.

    Args:
        router: Where to.
        method: The HTTP method.
        path: The path.
        answer: Answers a request.
        about: What it does.
        body: The schema of the request's body.
        also: What the response may be beside JSON, by media type.
    """
    statuses = _REFUSALS if body else _WITHOUT_BODY
    refusals = {
        status: {
            "description": _REFUSALS[status],
            "content": {"application/json": {"schema": ERROR}},
        }
        for status in statuses
    }
    content = {"application/json": {"schema": {}}, **(also or {})}
    extra: dict[str, Any] = {
        "responses": {"200": {"description": "The answer.", "content": content}, **refusals}
    }
    if body:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    router.add_api_route(
        path,
        answer,
        methods=[method],
        summary=about,
        openapi_extra=extra,
        response_model=None,
        operation_id=f"{method.lower()}{path.translate(_NO_NAME)}",
    )


_NO_NAME = str.maketrans(dict.fromkeys("/{}:.", "_"))


def completion_body(task: Task) -> dict[str, Any]:
    """Write the schema of a request to complete something."""
    field = INPUT_FIELDS[task]
    schema = MESSAGES if task == CHAT else PROMPT
    return _object({field: schema, **_properties(PARAMETERS[task])}, field)


def response_body() -> dict[str, Any]:
    """Write the schema of a request for a response."""
    flat = _properties(FIELDS)
    properties: dict[str, Any] = {"input": _INPUT}
    properties |= {name: schema for name, schema in flat.items() if "." not in name}
    for group in GROUPS:
        inner = {n.partition(".")[2]: s for n, s in flat.items() if n.startswith(f"{group}.")}
        if inner:
            properties[group] = {"anyOf": [_object(inner), {"type": "null"}]}
    return _object(properties, "input")


def option_body(options: Mapping[str, Option], *required: str) -> dict[str, Any]:
    """Write the schema of a body whose fields are a table's."""
    return _object(_properties(options), *required)


def _properties(options: Mapping[str, Option]) -> dict[str, Any]:
    return {
        option.name: _property(option) for option in options.values() if option.status != "refused"
    }


def _property(option: Option) -> dict[str, Any]:
    """Write the schema of one parameter; null counts as not given."""
    allowed = option.check.allowed
    about = option.about if allowed == "anything" else f"{option.about} May be {allowed}."
    if option.shown_default:
        about += f" By default: {option.shown_default}."
    schema = dict(option.check.schema)
    if not schema:
        return {"description": about}
    return {"anyOf": [schema, {"type": "null"}], "description": about}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return schema


_ONE = {
    name: schema
    for task in (TEXT, COMPLETIONS, CHAT)
    for name, schema in completion_body(task)["properties"].items()
}

INVOCATION = _object(
    {
        **_ONE,
        "dataframe_split": {
            "type": "object",
            "description": "Rows: columns, a list of names, and data, a list of lists.",
        },
        "dataframe_records": {"type": "array", "items": {"type": "object"}},
        "instances": {"description": "A list of requests or prompts."},
        "inputs": {"description": "The same."},
        "params": {"type": "object", "description": "Parameters for all rows."},
    }
)
"""The schema of MLflow's payloads: one request, or rows."""
