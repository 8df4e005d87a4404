"""gpt-oss's messages (OpenAI's harmony format): thoughts, text and calls, each on a channel.

A completion is a list of messages: a header, which names a channel and maybe a recipient, and a
body. A message on the channel ``analysis`` is a thought, one to ``functions.name`` a call, and
every other one text. See https://cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.marks import begun
from mlflow_phi3_onnx.openai.reasoning.base import ENDLESS
from mlflow_phi3_onnx.openai.tools.deltas import Part, ToolCallOutput
from mlflow_phi3_onnx.openai.tools.formats.base import ToolFormat

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings

__all__ = ["FORMAT", "MARKS", "HarmonyReader", "channel_of"]

_ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", *_ENDS)
"""The control tokens around and in messages."""

_BODY_ENDS = (*_ENDS, "<|start|>")
_BODY_END = re.compile("|".join(map(re.escape, _BODY_ENDS)))
_HEADER_BEGINS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "to=")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=functions\.(.+?)(?=\s|<\||$)")
_BETWEEN = "\n\n"

MAX_HEADER = 1000
"""The most characters of a header, white space before it included; what is longer is text."""


def channel_of(header: str) -> str:
    """Return the channel that a message's header names, or nothing."""
    found = _CHANNEL.search(header)
    return found[1] if found else ""


class HarmonyReader:
    """Separates a completion into thoughts, text and tool calls, as they are written.

    Several thoughts, and several texts, are one, with an empty line between them.

    Args:
        names: The tools that may be called. What is sent to others is text.

    Attributes:
        thoughts: Where the thoughts so far begin and end, in characters, with their headers.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._output = ToolCallOutput()
        self._held = ""
        self._at = 0
        self._taken = 0
        self._begun = 0
        self._ended = False
        self._stage = self._header
        self._kind = ""
        self._written: set[str] = set()
        self._new = True
        self.thoughts: list[tuple[int, int]] = []

    def begin(self, channel: str) -> None:
        """Begin inside of a message, whose header the prompt has."""
        self._enter("thought" if channel == "analysis" else "text")

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self._output.calls

    def add(self, text: str) -> list[Part]:
        """Take the next delta of text and return what can be passed on."""
        self._held, self._at = self._held[self._at :] + text, 0
        while self._stage():
            pass
        return self._output.passed()

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        self._ended = True
        return self.add("")

    def _take(self, count: int) -> str:
        taken = self._held[self._at : self._at + count]
        self._at += count
        self._taken += count
        return taken

    def _header(self) -> bool:
        """Read a header, if it is one; return whether there is more to do."""
        head = self._held[self._at : self._at + MAX_HEADER]
        core = head.lstrip()
        at = core.find("<|message|>")
        more = not self._ended and len(head) < MAX_HEADER
        if not core.startswith(_HEADER_BEGINS):
            if more and any(mark.startswith(core) for mark in _HEADER_BEGINS):
                return False  # it may still be one
            self._enter("text")
        elif at >= 0:
            header = core[:at]
            self._take(len(head) - len(core) + at + len("<|message|>"))
            called = _RECIPIENT.search(header)
            if called and called[1] in self._names:
                self._output.call(called[1])
                self._enter("call")
            else:
                self._enter("thought" if channel_of(header) == "analysis" else "text")
        elif len(head) == MAX_HEADER:
            self._enter("text")
            self._write(self._take(MAX_HEADER))
        else:
            return False  # a header that is cut is nothing
        return True

    def _enter(self, kind: str) -> None:
        self._kind = kind
        self._new = True
        self._stage = self._body
        if kind == "thought":
            self.thoughts.append((self._begun, ENDLESS))

    def _body(self) -> bool:
        """Pass on a message's body; return whether it has ended."""
        found = _BODY_END.search(self._held, self._at)
        if not found:
            keep = 0 if self._ended else max(begun(self._held, mark) for mark in _BODY_ENDS)
            self._write(self._take(max(len(self._held) - self._at - keep, 0)))
            return False
        self._write(self._take(found.start() - self._at))
        if found[0] in _ENDS:
            self._take(len(found[0]))
        if self._kind == "thought":
            self.thoughts[-1] = (self.thoughts[-1][0], self._taken)
        if self._kind == "call" and self._new:
            self._output.arguments("{}")
        self._begun = self._taken
        self._stage = self._header
        return True

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._kind == "call":
            self._output.arguments(text)
        else:
            text = _BETWEEN * (self._new and self._kind in self._written) + text
            self._written.add(self._kind)
            (self._output.reasoning if self._kind == "thought" else self._text)(text)
        self._new = False

    def _text(self, text: str) -> None:
        self._output.text([text])


class Harmony(ToolFormat):
    """Calls that are messages to ``functions.name``, one a completion."""

    name = "harmony"

    def matches(self, model: Markings) -> bool:
        """Whether a model writes calls so, by its chat template and its control tokens."""
        return all(
            model.control_id(mark) is not None or model.template_shows(mark)
            for mark in ("<|channel|>", "<|message|>")
        )

    def parser(self, tools: Sequence[Mapping[str, Any]]) -> HarmonyReader:
        """Make a reader of one completion's thoughts, text and calls."""
        return HarmonyReader({tool["function"]["name"] for tool in tools})

    def grammar(
        self,
        schemas: Mapping[str, str],
        model: Markings,
        *,
        required: bool,
        parallel: bool,  # noqa: ARG002 - the token after a call ends the completion
    ) -> str:
        """Write the grammar of a completion that calls tools, after its thoughts."""
        channel, message = map(model.terminal, ("<|channel|>", "<|message|>"))
        constrain = model.terminal("<|constrain|>")
        calls: list[str] = []
        for name, schema in schemas.items():
            head = json.dumps(f"commentary to=functions.{name} ", ensure_ascii=False)
            calls.append(f'{channel} {head} {constrain} "json" {message} %json {schema}')
        if required:
            return f"start: {' | '.join(calls)}"
        text = f'{channel} "final" {message} TEXT'
        return f"start: {' | '.join([text, *calls])}\nTEXT: /(?s:.*)/"


FORMAT = Harmony()
