"""What a form of reasoning is: how a model that has it is known, its reader and its grammar."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from mlflow_phi3_onnx.openai.tools.formats.base import ToolCallParser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.openai.tools.deltas import Part
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings

__all__ = ["ENDLESS", "PlainReader", "Reader", "ReasoningFormat", "Start", "up_to"]

Start: TypeAlias = Literal["free", "open", "closed"]
"""Where a completion begins: before a thought, if there is one; inside of one; or after it."""

ENDLESS = 1 << 62
"""Where a thought ends that is not closed."""


class Reader(ToolCallParser, Protocol):
    """Separates a completion into reasoning, text and tool calls, as they are written."""

    @property
    def thoughts(self) -> Sequence[tuple[int, int]]:
        """Where the thoughts so far begin and end, in characters, their marks included."""
        ...


class PlainReader:
    """Reads a completion as nothing but text, or as its reader of tool calls does.

    Args:
        calls: Reads the tool calls, if there may be any.
    """

    thoughts: Sequence[tuple[int, int]] = ()

    def __init__(self, calls: ToolCallParser | None = None) -> None:
        self._calls = calls

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self._calls.calls if self._calls else 0

    def add(self, text: str) -> list[Part]:
        """Take the next delta of text and return what can be passed on."""
        if self._calls:
            return self._calls.add(text)
        return [text] if text else []

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        return self._calls.finish() if self._calls else []


class ReasoningFormat(ABC):
    """One way to think aloud.

    Attributes:
        name: What ``reasoning_format`` in ``model_config`` calls it.
        marks: What stands around thoughts. Those that are control tokens are read with the text.
    """

    name: str
    marks: tuple[str, ...]

    @abstractmethod
    def matches(self, model: Markings) -> bool:
        """Whether a model thinks so, by its chat template and its control tokens."""

    @abstractmethod
    def start(self, prompt: str) -> Start:
        """Tell where a completion begins by the end of its prompt's text."""

    @abstractmethod
    def start_within(self, content: str) -> Start:
        """Tell where a completion begins that goes on with an assistant's message."""

    @abstractmethod
    def reader(self, start: Start, calls: ToolCallParser | None) -> Reader:
        """Make a reader of one completion.

        Args:
            start: Where the completion begins.
            calls: Reads the tool calls in what follows the thoughts, if there may be any.
        """

    @abstractmethod
    def frame(self, start: Start, model: Markings, held: Sequence[str]) -> str:
        """Write the grammar, in Lark, of a completion that may think before it is held to a form.

        Args:
            start: Where the completion begins, before the end of a thought.
            model: The model's marks; its control tokens are those that grammars can name.
            held: The grammars of what follows, one of which holds: ``answer``, of the text, or
                ``calls``, of what a tool format writes.
        """


def up_to(rule: str, mark: str, model: Markings) -> list[str]:
    """Write the rules of any text up to a mark, which is its end; the first has the given name."""
    token = model.control_id(mark)
    if token is not None:
        return [f"{rule}: ANY <[{token}]>", "ANY: /(?s:.*)/"]
    escaped = re.escape(mark).replace("/", r"\/")
    return [f"{rule}[lazy]: /(?s:.*){escaped}/"]
