"""Grammars that tool calls are held to, in the form that a model writes them.

The forms are those of :mod:`mlflow_phi3_onnx.openai.tools.parser`. Which one a model has, its
control tokens tell: ``<|tool_call|>`` is Phi-4-mini's, ``<tool_call>`` is Hermes'. Models with
neither are held to Llama 3's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.grammar.schema_bounds import schema_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["CallRule", "call_grammar"]

PHI = ("<|tool_call|>", "<|/tool_call|>")
HERMES = ("<tool_call>", "</tool_call>")

MAX_CHARACTERS = 1 << 17
"""The most characters of the grammar for all tools together."""

_ANY_TEXT = "/(?s:.*)/"
_NO_BRACE = r"/\s*([^\s{](?s:.*))?/"


@dataclass(frozen=True)
class CallRule:
    """How a request wants tools to be called.

    Attributes:
        required: Whether the answer must be a call.
        name: The only tool that may be called, or None.
        parallel: Whether there may be several calls.
    """

    required: bool
    name: str | None = None
    parallel: bool = True


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    rule: CallRule,
    control_id: Callable[[str], int | None],
    shows: Callable[[str], bool],
) -> Grammar:
    """Build the grammar of an answer that calls tools, or may call them.

    Arguments are held to their tool's parameters where a call is required, and where the tool says
    ``strict``; else they are any JSON object.

    Args:
        tools: Tool definitions in OpenAI's form.
        rule: What the request wants.
        control_id: Returns the id of a control token, or None.
        shows: Whether the model's chat template writes a text.

    Raises:
        InvalidRequestError: If a tool's parameters are no JSON schema of an object, or too large.
    """
    functions = [tool["function"] for tool in tools]
    if rule.name is not None:
        functions = [function for function in functions if function["name"] == rule.name]
    # One model may write Hermes' marks as plain text, so its template is asked as well.
    marks = next((m for m in (PHI, HERMES) if control_id(m[0]) is not None or shows(m[0])), None)
    key = "arguments" if marks else "parameters"
    calls = " | ".join(_call(function, key, rule) for function in functions)
    held, free = _bodies(marks, rule, control_id)
    lines = [f"start: {held if rule.required else free}", f"call: {calls}"]
    if not rule.required:
        lines += _free_text(marks, control_id)
    text = "\n".join(lines)
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"tools: the parameters have more than {MAX_CHARACTERS:,} characters.", param="tools"
        )
    return Grammar("lark", text, "tools")


def _call(function: Mapping[str, Any], key: str, rule: CallRule) -> str:
    head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{key}": '
    schema: Any = {"type": "object"}
    if rule.required or function.get("strict"):
        schema = _parameters(function)
    return f'{json.dumps(head)} %json {schema_text(schema, "tools")} "}}"'


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters")
    if schema is None:  # OpenAI: a function without parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InvalidRequestError(
            "tools: a function's parameters must be a JSON schema of an object.", param="tools"
        )
    return {"type": "object", **schema}


def _bodies(
    marks: tuple[str, str] | None, rule: CallRule, control_id: Callable[[str], int | None]
) -> tuple[str, str]:
    """Return the rule of an answer that is calls, and of one that may be text, calls, or both."""
    if marks is None:
        return "call", "TEXT | call"
    begin, end = (_mark(mark, control_id) for mark in marks)
    if marks == PHI:
        more = '(", " call)*' if rule.parallel else ""
        inside = f'"[" call {more} "]" {end}'
    else:
        more = f'("\\n" {begin} "\\n" call "\\n" {end})*' if rule.parallel else ""
        inside = f'"\\n" call "\\n" {end} {more}'
    if control_id(marks[0]) is not None:
        return f"{begin} {inside}", f"TEXT ({begin} {inside})?"
    return f"{begin} {inside}", f"TEXT | head {inside}"


def _mark(mark: str, control_id: Callable[[str], int | None]) -> str:
    token = control_id(mark)
    return json.dumps(mark) if token is None else f"<[{token}]>"


def _free_text(marks: tuple[str, str] | None, control_id: Callable[[str], int | None]) -> list[str]:
    """Return the rules of text that is no call."""
    if marks is None:
        return [f"TEXT: {_NO_BRACE}"]
    if control_id(marks[0]) is not None:
        return [f"TEXT: {_ANY_TEXT}"]
    mark = marks[0].replace("|", r"\|").replace("/", r"\/")
    return [
        f"TEXT: {_ANY_TEXT} & ~/(?s:.*){mark}(?s:.*)/",
        f"head[lazy]: /(?s:.*){mark}/",
    ]
