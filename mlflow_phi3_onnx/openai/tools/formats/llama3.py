"""Llama 3's: ``{"name": ..., "parameters": {...}}`` as the whole completion.

It may stand after ``<|python_tag|>``; only then may text come before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonFormat

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallRule

__all__ = ["Llama3"]


class Llama3(JsonFormat):
    """One call, with no mark that must be there."""

    name = "llama3"
    begin = "<|python_tag|>"
    end = "<|eom_id|>"
    key = "parameters"
    bare = True

    def matches(self, model: Markings) -> bool:
        """Whether the model has the tag, or its template the role of Llama 3's tools."""
        return super().matches(model) or model.template_shows("ipython")

    def held(self, rule: ToolCallRule, model: Markings) -> str:
        """Write what a completion of nothing but calls is made of."""
        del rule, model  # there is one call at most
        return "call"

    def free(self, held: str, model: Markings) -> list[str]:
        """Write the rules of a completion that is text or a call."""
        del model
        return [f"start: TEXT | {held}", r"TEXT: /\s*([^\s{](?s:.*))?/"]
