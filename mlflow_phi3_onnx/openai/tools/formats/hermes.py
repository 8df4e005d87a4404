"""Hermes' and Qwen's calls: each between marks, which some models write as plain text."""

from __future__ import annotations

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonCalls

__all__ = ["FORMAT"]

FORMAT = JsonCalls(
    name="hermes",
    begin="<tool_call>",
    end="</tool_call>",
    one=r'{begin} "\n" call "\n" {end}',
    several=r'{begin} "\n" call "\n" {end} ("\n" {begin} "\n" call "\n" {end})*',
    # Qwen3-Coder and GLM write something else than JSON between the same marks.
    others=("<function=", "<arg_key>"),
)
