"""Hermes' and Qwen's: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonFormat

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallRule

__all__ = ["Hermes"]

_OTHERS = ("<function=", "<arg_key>")
"""What Qwen3-Coder and GLM write between the same marks, where this format has JSON."""


class Hermes(JsonFormat):
    """Each call between marks of its own; some models write the marks as plain text."""

    name = "hermes"
    begin = "<tool_call>"
    end = "</tool_call>"

    def matches(self, model: Markings) -> bool:
        """Whether the model has the mark, and its template writes JSON after it."""
        return super().matches(model) and not any(map(model.template_shows, _OTHERS))

    def held(self, rule: ToolCallRule, model: Markings) -> str:
        """Write what a completion of nothing but calls is made of."""
        begin = model.terminal(self.begin)
        inside = f'"\\n" call "\\n" {model.terminal(self.end)}'
        return f"{begin} {inside}" + (f' ("\\n" {begin} {inside})*' if rule.parallel else "")
