"""Calls after the word functools: Phi-4-mini by OVMS' and vLLM's templates, and Firefunction."""

from __future__ import annotations

from mlflow_phi3_onnx.openai.tools.formats.json_calls import JsonCalls

__all__ = ["FORMAT"]

FORMAT = JsonCalls(
    name="functools",
    begin="functools",
    end="",
    one='{begin} "[" call "]"',
    several='{begin} "[" call (", " call)* "]"',
)
