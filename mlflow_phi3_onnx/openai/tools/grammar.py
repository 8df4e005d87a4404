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
        how = f"in the format {tool_format.name}" if tool_format else "by this model"
        raise UnsupportedParameterError(
            f"{'tool_choice' if rule.required else 'tools'}: calls cannot be enforced {how}:"
            " how it writes them is not known. Set tool_format in model_config to the format that"
            " it was trained on, or use tool_choice 'auto' or 'none'.",
            param="tool_choice" if rule.required else "tools",
        )
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"tools: the parameters have more than {MAX_CHARACTERS:,} characters.", param="tools"
        )
    return Grammar("lark", text, "tools")
