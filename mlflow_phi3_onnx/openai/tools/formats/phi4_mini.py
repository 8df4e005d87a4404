"""Phi-4-mini's calls, and the demo model's: a list between two marks."""

from __future__ import annotations

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonCalls

__all__ = ["FORMAT"]

FORMAT = JsonCalls(
    name="phi4_mini",
    begin="<|tool_call|>",
    end="<|/tool_call|>",
    one='{begin} "[" call "]" {end}',
    several='{begin} "[" call (", " call)* "]" {end}',
    others=("functools[",),
)
