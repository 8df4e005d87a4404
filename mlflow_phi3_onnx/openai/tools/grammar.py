"""The grammar that a completion's tool calls are held to, in the model's own format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallRule, ToolFormat

__all__ = ["tool_call_grammar"]

MAX_CHARACTERS = 1 << 17
"""The most characters of the grammar for all tools together."""


def tool_call_grammar(
    tool_format: ToolFormat | None,
    tools: Sequence[Mapping[str, Any]],
    rule: ToolCallRule,
    model: Markings,
) -> Grammar | None:
    """Build the grammar of a completion that calls tools, or may call them.

    Arguments are held to their tool's parameters where a call is required, and where the tool says
    ``strict``; else they are any JSON object.

    Args:
        tool_format: How the model writes calls, where that is known.
        tools: Tool definitions in OpenAI's form.
        rule: What the request wants.
        model: The model's marks; its control tokens are those that grammars can name.

    Returns:
        The grammar; None where nothing is to be held, because no call is ever read.

    Raises:
        UnsupportedParameterError: If calls cannot be enforced.
        InvalidRequestError: If a tool's parameters are no JSON schema of an object, or too large.
    """
    functions = [tool["function"] for tool in tools]
    if rule.name is not None:
        functions = [function for function in functions if function["name"] == rule.name]
    if tool_format is None and not rule.required:
        return None
    text = tool_format.grammar(functions, rule, model) if tool_format else None
    if text is None:
        why = "the form in which this model writes them is not known"
        if tool_format:
            why = f"its tool_format, {tool_format.name}, has no grammar"
        raise UnsupportedParameterError(
            f"tool_choice: calls cannot be enforced, for {why}. Set tool_format in model_config to"
            " the form that the model was trained on, or leave the model free: tool_choice 'auto',"
            " without strict tools and parallel_tool_calls.",
            param="tool_choice",
        )
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"tools: the parameters have more than {MAX_CHARACTERS:,} characters.", param="tools"
        )
    return Grammar("lark", text, "tools")
