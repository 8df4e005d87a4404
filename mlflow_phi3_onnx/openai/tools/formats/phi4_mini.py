"""Phi-4-mini's: ``<|tool_call|>[{"name": ..., "arguments": {...}}, ...]<|/tool_call|>``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonFormat

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallRule

__all__ = ["Phi4Mini"]


class Phi4Mini(JsonFormat):
    """A list of calls between two marks; the demo model's format too."""

    name = "phi4_mini"
    begin = "<|tool_call|>"
    end = "<|/tool_call|>"

    def held(self, rule: ToolCallRule, model: Markings) -> str:
        """Write what a completion of nothing but calls is made of."""
        more = ' (", " call)*' if rule.parallel else ""
        return f'{model.terminal(self.begin)} "[" call{more} "]" {model.terminal(self.end)}'
