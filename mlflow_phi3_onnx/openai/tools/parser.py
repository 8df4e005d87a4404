"""Tool calls in a model's text, found while it is written.

How a call is written is its format's to know (:mod:`mlflow_phi3_onnx.openai.tools.formats`); here
is what all formats have in common.

A stream cannot take back what it has sent, so every format has a moment from which a call is one.
From there on it is passed on as it is written, and if it breaks or is cut it is a call all the
same, with the arguments that were written. Everything else is text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.deltas import Part, ToolCallOutput
from mlflow_phi3_onnx.openai.tools.json_reader import JsonReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import ToolFormat

__all__ = ["ToolCallParser"]


class ToolCallParser:
    """Separates a completion's text from the tool calls in it, as they are written.

    Nothing is held back but what may yet become, or close, a call. What comes of a completion does
    not depend on how it was cut into chunks, for its format's reader gets one character at a time.

    Args:
        tool_format: How the model writes calls.
        tools: The tools that may be called, in OpenAI's form.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> None:
        self._reader = JsonReader()
        self._output = ToolCallOutput()
        functions = {tool["function"]["name"]: tool["function"] for tool in tools}
        self._steps = tool_format.read(self._reader, self._output, functions)

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self._output.calls

    def add(self, text: str) -> list[Part]:
        """Take the next chunk of text and return what can be passed on."""
        for char in text:
            self._reader.put(char)
            next(self._steps)
        return self._output.passed()

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        self._reader.put("")
        next(self._steps, None)
        return self._output.passed()
