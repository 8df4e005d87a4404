"""Llama 3's calls: one as the whole completion, or after a mark, and then after text too."""

from __future__ import annotations

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonCalls

__all__ = ["FORMAT"]

FORMAT = JsonCalls(
    name="llama3",
    begin="<|python_tag|>",
    end="<|eom_id|>",
    one="call",
    several="call",
    key="parameters",
    bare="{",
    shown=("ipython",),  # the role of what tools return
    others=("<function=", "functools["),
)
