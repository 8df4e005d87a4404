"""The grammar that a completion's tool calls are held to, in the model's own format."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.core.schemas import kinds_meant
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.grammar.schema_bounds import schema_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolFormat

__all__ = ["ToolCallRule", "tool_call_grammar"]

MAX_CHARACTERS = 1 << 17
"""The most characters of the grammar for all tools together."""


@dataclass(frozen=True)
class ToolCallRule:
    """How a request wants tools to be called.

    Attributes:
        required: Whether the completion must be a call.
        names: The only tools that may be called, or None.
        parallel: Whether there may be several calls.
    """

    required: bool
    names: tuple[str, ...] | None = None
    parallel: bool = True


def tool_call_grammar(
    tool_format: ToolFormat | None,
    tools: Sequence[Mapping[str, Any]],
    rule: ToolCallRule,
    model: Markings,
    answer: Grammar | None = None,
) -> Grammar | None:
    """Build the grammar of a completion that calls tools, or may call them.

    Arguments are held to their tool's parameters where a call is required, as far as that can be
    done, and wholly where the tool says ``strict``; else they are any JSON object. Whatever the
    grammar allows, the parser finds the calls in it and no others.

    Args:
        tool_format: How the model writes calls, where that is known.
        tools: Tool definitions in OpenAI's form.
        rule: What the request wants.
        model: The model's marks; its control tokens are those that grammars can name.
        answer: What the completion may be instead of calls; None where it may be any text.

    Returns:
        The grammar; None where nothing is to be held, because no call is ever read.

    Raises:
        UnsupportedParameterError: If calls cannot be enforced.
        InvalidRequestError: If a tool's parameters are no JSON schema of an object, or too large.
    """
    if tool_format is None:
        if answer is not None:
            raise UnsupportedParameterError(
                f"{answer.param} leaves no room for tool calls, for the form in which this model"
                " writes them is not known. Leave out tools, set tool_choice to 'none', or set"
                " tool_format in model_config to the form that the model was trained on.",
                param=answer.param,
            )
        if not rule.required:
            return None
        raise UnsupportedParameterError(
            "tool_choice: calls cannot be enforced, for the form in which this model writes them is"
            " not known. Set tool_format in model_config to the form that the model was trained on,"
            " or leave the model free: tool_choice 'auto', without strict tools and"
            " parallel_tool_calls.",
            param="tool_choice",
        )
    functions = [tool["function"] for tool in tools]
    held = {
        function["name"]: (_held(function, required=rule.required), function.get("strict") is True)
        for function in functions
        if rule.names is None or function["name"] in rule.names
    }
    with suppress(TypeError, ValueError, RecursionError):  # schema_text says what is wrong
        _check_size(json.dumps(held))  # before each keyword is tried, which may take long
    schemas = {
        name: schema_text(schema, "tools", strict=strict) for name, (schema, strict) in held.items()
    }
    alone = rule.required or answer is not None
    text = tool_format.grammar(schemas, model, required=alone, parallel=rule.parallel)
    _check_size(text)
    return Grammar("lark", text, "tools")


def _check_size(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"tools: the parameters have more than {MAX_CHARACTERS:,} characters.", param="tools"
        )


def _held(function: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    """Return the schema of a function's arguments; what nothing holds is any JSON object."""
    strict = function.get("strict") is True
    if not (required or strict):
        return {"type": "object"}
    schema = function.get("parameters")
    if schema is None:  # OpenAI: a function without parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}
    named = schema.get("type", "object") if isinstance(schema, dict) else None
    if "object" not in ([named] if strict else kinds_meant(named)):
        raise InvalidRequestError(
            "tools: a function's parameters must be a JSON schema of an object, of type 'object'.",
            param="tools",
        )
    return {**schema, "type": "object"}
