"""The channels of gpt-oss: what it thinks is on one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.reasoning.base import ReasoningFormat, up_to
from mlflow_phi3_onnx.openai.tools.formats import harmony
from mlflow_phi3_onnx.openai.tools.formats.harmony import HarmonyReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.openai.reasoning.base import Reader, Start
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser

__all__ = ["HARMONY"]


class Harmony(ReasoningFormat):
    """Messages on channels; its reader reads the tool calls too, which are such messages."""

    name = "harmony"
    marks = harmony.MARKS

    def matches(self, model: Markings) -> bool:
        """Whether a model thinks so, by its chat template and its control tokens."""
        return harmony.FORMAT.matches(model)

    def start(self, prompt: str) -> Start:
        """Tell where a completion begins by the end of its prompt's text."""
        if not prompt.rstrip().endswith("<|message|>"):
            return "free"
        header = prompt.rpartition("<|start|>")[2]
        return "open" if harmony.channel_of(header) == "analysis" else "closed"

    def start_within(self, content: str) -> Start:  # noqa: ARG002 - a content has no thoughts
        """Tell where a completion begins that goes on with an assistant's message."""
        return "closed"

    def reader(self, start: Start, calls: ToolCallParser | None) -> Reader:
        """Make a reader of one completion."""
        reader = calls if isinstance(calls, HarmonyReader) else HarmonyReader(frozenset())
        if start != "free":
            reader.begin("analysis" if start == "open" else "final")
        return reader

    def frame(self, start: Start, model: Markings, held: Sequence[str]) -> str:
        """Write the grammar of a completion that may think before it is held to a form."""
        channel, message = map(model.terminal, ("<|channel|>", "<|message|>"))
        forms = {"answer": f'{channel} "final" {message} @answer', "calls": "@calls"}
        thought = "rest " * (start == "open")
        return "\n".join(
            [
                f"start: {thought}analysis* ({' | '.join(forms[name] for name in held)})",
                f'analysis: {channel} "analysis" {message} rest',
                f'rest: body {model.terminal("<|start|>")} "assistant"',
                *up_to("body", "<|end|>", model),
            ]
        )


HARMONY = Harmony()
