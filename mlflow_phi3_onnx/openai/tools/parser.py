"""Tool calls in a model's text, in the forms that open models write them.

==========  ===================================================================
Phi-4-mini  ``<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>``
Hermes      ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, repeated
Llama 3     ``{"name": ..., "parameters": {...}}`` as the whole answer, maybe after
            ``<|python_tag|>``
==========  ===================================================================

A stream cannot take back what it has sent, so there is a moment from which a call is one: after a
mark, when the name of a known tool is whole; without a mark, when its arguments have begun as an
object too. From there on it is passed on as it is written, and if it breaks or is cut it is a call
all the same, with the arguments that were written. Everything else is text.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow_phi3_onnx.openai.tools.json_reader import PieceReader, Reading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["CallPiece", "Piece", "ToolCallParser", "whole_message"]

# Each begins with "<" and has no other one: a mark that breaks off holds no beginning of another.
_MARKS = {
    "<|tool_call|>": "<|/tool_call|>",
    "<tool_call>": "</tool_call>",
    "<|python_tag|>": "<|eom_id|>",
}
_ARGUMENTS = ("arguments", "parameters")
_BESIDE = ("type", "id")
"""What a call without a mark may have beside its name and arguments; other objects are text."""


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool call.

    Attributes:
        index: Which of the answer's calls it is.
        id: The call's id, on its first piece alone.
        name: The tool's name, on its first piece alone.
        arguments: What was written of the arguments since the piece before.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""

    def delta(self) -> dict[str, Any]:
        """Return the piece as an entry of a chunk's ``tool_calls``."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


Piece: TypeAlias = str | CallPiece
"""A piece of an answer: text, or a part of a call."""


def whole_message(pieces: Iterable[Piece]) -> tuple[str, list[dict[str, Any]]]:
    """Put the pieces of an answer together, to its text and the ``tool_calls`` of its message."""
    text = ""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif piece.name is None:
            calls[piece.index]["function"]["arguments"] += piece.arguments
        else:
            call = piece.delta()
            del call["index"]
            calls.append(call)
    return text, calls


@dataclass
class _Call:
    """What is known of the call that is being read.

    Attributes:
        marked: Whether it stands after a mark.
        name: The tool, once it is known.
        early: Arguments that came before the name.
        begun: Whether it was passed on.
        whole: Whether its arguments are.
    """

    marked: bool
    name: str = ""
    early: str | None = None
    begun: bool = False
    whole: bool = False


class ToolCallParser:
    """Separates an answer's text from the tool calls in it, as they are written.

    Nothing is held back but what may yet become, or close, a call. The pieces of a call's arguments
    are together what the model wrote; where it wrote them as a JSON string, what that stands for.
    What comes of an answer does not depend on how it was cut into pieces.

    Args:
        names: The names of the tools that may be called.

    Attributes:
        calls: How many calls there were so far.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.calls = 0
        self._names = names
        self._reader = PieceReader()
        self._held = self._reader.held
        self._arguments: list[str] | None = None
        self._text: list[str] = []
        self._out: list[Piece] = []
        self._steps = self._answer()

    def add(self, text: str) -> list[Piece]:
        """Take the next piece of text and return what can be passed on."""
        for char in text:
            self._reader.put(char)
            next(self._steps)
        return self._passed()

    def finish(self) -> list[Piece]:
        """Return what was held back, now that the answer is over."""
        self._reader.put("")
        next(self._steps, None)
        return self._passed()

    def _passed(self) -> list[Piece]:
        """Return what was passed on since the last time."""
        self._pass_arguments()
        self._join_text()
        out, self._out = self._out, []
        return out

    def _pass_text(self) -> None:
        self._text += self._held
        self._held.clear()

    def _join_text(self) -> None:
        if self._text:
            self._out.append("".join(self._text))
            self._text.clear()

    def _pass_call(self, piece: CallPiece) -> None:
        self._join_text()
        self._out.append(piece)

    def _pass_arguments(self) -> None:
        if self._arguments:
            self._pass_call(CallPiece(self.calls - 1, arguments="".join(self._arguments)))
            self._arguments.clear()

    def _answer(self) -> Reading[None]:
        fresh = True
        if (yield from self._reader.spaces()) == "{":
            fresh = yield from self._block("")
        closing = ""
        while mark := (yield from self._until_mark(closing, fresh)):
            if mark == closing:
                self._held.clear()
                closing = ""
                fresh = True
            elif fresh := (yield from self._block(_MARKS[mark])):
                closing = _MARKS[mark]

    def _until_mark(self, closing: str, fresh: bool) -> Reading[str]:
        """Pass text on until a mark, which is held; return it, or nothing at the end.

        Args:
            closing: The mark that closes the calls before, if it is still to come.
            fresh: Whether the answer begins here, or a call has ended. White space is then no text
                yet: before the next call, or the end, it is dropped.
        """
        if fresh and not (yield from self._reader.spaces()) and self.calls:
            self._held.clear()
        while char := (yield from self._reader.peek()):
            if char != "<":
                self._reader.take()
            elif mark := (yield from self._mark([*_MARKS, closing])):
                return mark
            elif fresh and not (yield from self._reader.peek()) and self._holds_start_of(closing):
                self._held.clear()
            fresh = False
            self._pass_text()
        self._pass_text()
        return ""

    def _holds_start_of(self, mark: str) -> bool:
        return mark.startswith("".join(self._held).strip())

    def _mark(self, marks: Collection[str]) -> Reading[str]:
        """Take the ``<`` that is next and what makes a mark of it; return the mark, or nothing."""
        text = ""
        while char := (yield from self._reader.peek()):
            if not any(mark.startswith(text + char) for mark in marks) and text:
                break
            self._reader.take()
            text += char
            if text in marks:
                return text
        return ""

    def _block(self, closing: str) -> Reading[bool]:
        """Read the calls after a mark, or the one without a mark; return whether there are any.

        Args:
            closing: The mark that closes the block; ``""`` where no mark opened it.
        """
        before = self.calls
        listed = (yield from self._reader.spaces()) == "["
        if listed:
            self._reader.take()
        while True:
            yield from self._reader.spaces()
            if not (yield from self._call(closing)):
                self._pass_text()
                break
            char = yield from self._reader.spaces()
            if not listed or char not in (",", "]"):
                break
            self._reader.take()
            self._held.clear()
            if char == "]":
                break
        return self.calls > before

    def _call(self, closing: str) -> Reading[bool]:
        """Read one call; return whether its arguments are whole. What is held then is no call."""
        if (yield from self._reader.peek()) != "{":
            return False
        self._reader.take()
        yield from self._reader.spaces()
        call = _Call(marked=bool(closing))
        if (yield from self._members(call)) and call.name and not call.whole:
            call.early = "{}"
            self._settle(call)
        if call.begun:
            yield from self._leave(call, closing)
        return call.whole

    def _leave(self, call: _Call, closing: str) -> Reading[None]:
        """Drop the rest of a whole call; take that of a broken one for its arguments."""
        if call.whole or not (yield from self._reader.peek()):
            self._held.clear()
            return
        self._arguments = self._held
        while char := (yield from self._reader.peek()):
            if char != "<":
                self._reader.take()
                continue
            self._stop_passing()
            if (yield from self._mark([closing])) or not (yield from self._reader.peek()):
                self._held.clear()
                return
            self._arguments = self._held
        self._stop_passing()

    def _stop_passing(self) -> None:
        self._pass_arguments()
        self._arguments = None

    def _members(self, call: _Call) -> Reading[bool]:
        """Read the members of a call's object; return whether it is whole."""
        while True:
            key: list[str] = []
            if not (yield from self._reader.key(key)):
                return False
            if not (yield from self._member("".join(key), call)):
                return False
            char = yield from self._reader.spaces()
            if char not in (",", "}"):
                return False
            self._reader.take()
            if char == "}":
                return True
            yield from self._reader.spaces()

    def _member(self, key: str, call: _Call) -> Reading[bool]:
        if key == "name" and not call.name:
            name: list[str] = []
            yield from self._reader.spaces()
            if not (yield from self._reader.string(name)):
                return False
            call.name = "".join(name)
            return call.name in self._names and self._settle(call)
        if key in _ARGUMENTS and call.early is None and not call.whole:
            return (yield from self._read_arguments(call))
        if not (call.marked or call.begun or key in _BESIDE):
            return False
        return (yield from self._reader.value())

    def _read_arguments(self, call: _Call) -> Reading[bool]:
        char = yield from self._reader.spaces()
        text: list[str] = []
        if call.name and (call.marked or char == "{"):
            self._begin(call)
            self._held.clear()
            self._arguments = text if char == '"' else self._held
        start = len(self._held)
        if char == '"':
            whole = yield from self._reader.string(text)
        else:
            whole = yield from self._reader.value()
            text = self._held[start:]
        if self._arguments is not None:
            self._stop_passing()
            self._held.clear()
            call.whole = whole
            return whole
        call.early = "".join(text)
        return whole and self._settle(call)

    def _settle(self, call: _Call) -> bool:
        """Pass on what is known of a call, once it is one; return whether it may be one."""
        if not call.name:
            return True
        if not call.marked and call.early is not None and not _is_object(call.early):
            return False
        if call.marked or call.early is not None:
            self._begin(call)
        if call.early is not None:
            self._pass_call(CallPiece(self.calls - 1, arguments=call.early))
            call.whole = True
        return True

    def _begin(self, call: _Call) -> None:
        if call.begun:
            return
        call.begun = True
        self._held.clear()
        self._pass_call(CallPiece(self.calls, f"call_{uuid.uuid4().hex[:24]}", call.name))
        self.calls += 1


def _is_object(text: str) -> bool:
    return text.lstrip().startswith("{")
