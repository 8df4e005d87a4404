"""Thoughts between two marks, at the beginning of a completion or from the prompt's end on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.marks import begun
from mlflow_phi3_onnx.openai.reasoning.base import (
    ENDLESS,
    PlainReader,
    ReasoningFormat,
    up_to,
)
from mlflow_phi3_onnx.openai.tools.deltas import Reasoning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.openai.reasoning.base import Reader, Start
    from mlflow_phi3_onnx.openai.tools.deltas import Part
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser

__all__ = ["MISTRAL_THINK", "THINK"]

_SPACES = re.compile(r"\s*")


@dataclass(frozen=True)
class MarkedThought(ReasoningFormat):
    """One thought between two marks, before everything else.

    Attributes:
        name: What ``reasoning_format`` in ``model_config`` calls it.
        marks: The mark before the thought, and the one after it.
    """

    name: str
    marks: tuple[str, str]

    def matches(self, model: Markings) -> bool:
        """Whether a model thinks so, by its chat template and its control tokens."""
        return any(
            model.template_shows(mark) or model.control_id(mark) is not None for mark in self.marks
        )

    def start(self, prompt: str) -> Start:
        """Tell where a completion begins by the end of its prompt's text."""
        begin, end = self.marks
        if prompt.rstrip().endswith(begin):
            return "open"
        return "closed" if prompt.rstrip().endswith(end) else "free"

    def start_within(self, content: str) -> Start:
        """Tell where a completion begins that goes on with an assistant's message."""
        begin, end = self.marks
        return "open" if content.rfind(begin) > content.rfind(end) else "closed"

    def reader(self, start: Start, calls: ToolCallParser | None) -> Reader:
        """Make a reader of one completion."""
        after = PlainReader(calls)
        return after if start == "closed" else _Reader(*self.marks, start, after)

    def frame(self, start: Start, model: Markings, held: Sequence[str]) -> str:
        """Write the grammar of a completion that may think before it is held to a form."""
        forms = " | ".join(f"@{name}" for name in held)
        begin, end = self.marks
        thought = "rest" if start == "open" else f"({model.terminal(begin)} rest)?"
        rest = up_to("thought", end, model)
        return "\n".join(
            [f"start: {thought} ({forms})", "rest: thought SPACE?", r"SPACE: /\s{1,4}/", *rest]
        )


class _Reader:
    """Reads a thought, if there is one, and then what follows.

    White space around a thought belongs neither to it nor to what follows. What comes of a
    completion does not depend on how it was cut into deltas: the end of the text is held back for
    as long as it may be a mark, or white space before one.

    Args:
        begin: The mark before the thought.
        end: The mark after it.
        start: Where the completion begins.
        after: Reads what follows.
    """

    def __init__(self, begin: str, end: str, start: Start, after: PlainReader) -> None:
        self._begin = begin
        self._end = end
        self._after = after
        self._held = ""
        self._blank: list[str] = []
        self._taken = 0
        self._ended = False
        self._stage = self._before
        self.thoughts: list[tuple[int, int]] = []
        if start == "open":
            self._open(0)

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self._after.calls

    def add(self, text: str) -> list[Part]:
        """Take the next delta of text and return what can be passed on."""
        self._held += text
        parts: list[Part] = []
        stage = None
        while stage != self._stage:
            stage = self._stage
            parts += stage()
        return parts

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        self._ended = True
        return [*self.add(""), *self._after.finish()]

    def _take(self, count: int) -> str:
        """Take so many characters of what is held."""
        taken, self._held = self._held[:count], self._held[count:]
        self._taken += count
        return taken

    def _open(self, at: int) -> None:
        self._blank.clear()
        self.thoughts.append((at, ENDLESS))
        self._stage = self._opened

    def _before(self) -> list[Part]:
        """Wait for the mark before the thought, or for anything else."""
        self._blank.append(self._take_spaces())
        if self._held.startswith(self._begin):
            self._open(0)
        elif not self._may_begin():
            self._stage = self._follow
            return self._after.add("".join(self._blank))
        return []

    def _opened(self) -> list[Part]:
        """Drop white space, and the first mark as often as it stands there."""
        at = _end_of_spaces(self._held, 0)
        while self._held.startswith(self._begin, at):
            at = _end_of_spaces(self._held, at + len(self._begin))
        self._take(at)
        if not self._may_begin():
            self._stage = self._inside
        return []

    def _may_begin(self) -> bool:
        """Whether what is held may become the first mark."""
        return not self._ended and self._begin.startswith(self._held)

    def _take_spaces(self) -> str:
        return self._take(_end_of_spaces(self._held, 0))

    def _inside(self) -> list[Part]:
        at = self._held.find(self._end)
        if at >= 0:
            read = self._take(at)
            self._take(len(self._end))
            self.thoughts[-1] = (self.thoughts[-1][0], self._taken)
            self._stage = self._closed
        else:
            keep = 0 if self._ended else begun(self._held, self._end)
            read = self._take(len(self._held) - keep)
        thought = read.rstrip()
        if not thought:
            self._blank.append(read)
            return []
        before, self._blank = "".join(self._blank), [read[len(thought) :]]
        return [Reasoning(before + thought)]

    def _closed(self) -> list[Part]:
        """Drop white space."""
        self._take_spaces()
        if self._held:
            self._stage = self._follow
        return []

    def _follow(self) -> list[Part]:
        return self._after.add(self._take(len(self._held)))


def _end_of_spaces(text: str, at: int) -> int:
    """Tell where the white space at a place in a text ends."""
    found = _SPACES.match(text, at)
    assert found
    return found.end()


THINK = MarkedThought("think", ("<think>", "</think>"))
MISTRAL_THINK = MarkedThought("mistral_think", ("[THINK]", "[/THINK]"))
