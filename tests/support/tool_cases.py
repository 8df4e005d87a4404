"""Tools, questions and checks of calls, which several test modules share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema

from mlflow_phi3_onnx.openai.tools.deltas import whole_message
from mlflow_phi3_onnx.openai.tools.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow_phi3_onnx.openai.tools.deltas import Part

WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, "description": f"Does {name}.", **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SMALL = {"type": "integer", "minimum": 0, "maximum": 999}
TOOLS = [
    tool("get_weather", closed(city={"type": "string", "maxLength": 20})),
    tool("add_numbers", closed(first=SMALL, second=SMALL)),
    tool(
        "book_flight",
        {
            "$defs": {"code": {"type": "string", "pattern": "^[A-Z]{3}$"}},
            **closed(origin={"$ref": "#/$defs/code"}, stops={"enum": [0, 1, 2]}),
        },
    ),
    tool("stop_all"),
    tool("add", {"properties": {"n": SMALL}, "required": ["n"], "additionalProperties": False}),
]
PARAMETERS = {t["function"]["name"]: t["function"].get("parameters", closed()) for t in TOOLS}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def check_calls(choice: dict[str, Any]) -> list[str]:
    """Check that a choice is whole and valid calls, and return the tools' names."""
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        schema = PARAMETERS[call["function"]["name"]]
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.Draft202012Validator({"type": "object", **schema}).validate(arguments)
    return [call["function"]["name"] for call in choice["message"]["tool_calls"]]


CITY = '{"name": "f", "arguments": {"city": "Paris"}}'
"""A call of one of the two tools that :func:`parse` knows, f and g."""

MARKS = {"phi4_mini": "<|tool_call|>", "hermes": "<tool", "llama3": "<|python_tag|>"}
"""What the calls of a format of JSON, and nothing of the others, begin with."""

TWO = (tool("f"), tool("g"))


def format_in(text: str) -> str:
    """Name the format whose mark comes first in a text; without one, that is Llama 3's."""
    marks = {text.find(m): name for name, m in MARKS.items() if m in text}
    return marks[min(marks)] if marks else "llama3"


def parts_of(
    texts: Iterable[str], tool_format: str = "", tools: Sequence[dict[str, Any]] = TWO
) -> list[list[Part]]:
    """Return what a parser passes on after each text, and at the end."""
    texts = list(texts)
    tool_format = tool_format or format_in("".join(texts))
    parser = FORMATS[tool_format].parser(tools)
    return [*map(parser.add, texts), parser.finish()]


def parse(
    texts: Iterable[str], tool_format: str = "", tools: Sequence[dict[str, Any]] = TWO
) -> tuple[str, list[tuple[str, str]]]:
    """Return an answer's text and calls, and check that its pieces are in OpenAI's form."""
    pieces = [piece for passed in parts_of(texts, tool_format, tools) for piece in passed]
    known: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            assert piece
            continue
        assert isinstance(piece, dict)
        function = piece["function"]
        if piece["index"] == len(known):
            assert piece["type"] == "function"
            assert function == {"name": function["name"], "arguments": ""}
            known.append(piece["id"])
        else:
            assert piece["index"] == len(known) - 1
            assert piece == {
                "index": piece["index"],
                "function": {"arguments": function["arguments"]},
            }
    content, calls = whole_message(pieces)
    assert [call["id"] for call in calls] == known
    assert len(set(known)) == len(known)
    assert all(call["type"] == "function" for call in calls)
    functions = [call["function"] for call in calls]
    return content, [(function["name"], function["arguments"]) for function in functions]
