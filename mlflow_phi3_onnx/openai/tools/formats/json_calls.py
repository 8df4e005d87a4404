"""Tool calls as JSON objects with a name and arguments, after a mark or alone.

A stream cannot take back what it has sent, so there is a moment from which a call is one: after a
mark, when the name of a known tool is whole; without a mark, when its arguments have begun as an
object too. From there on it is passed on as it is written, and if it breaks or is cut it is a call
all the same, with the arguments that were written. Everything else is text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.deltas import Part, ToolCallOutput
from mlflow_phi3_onnx.openai.tools.formats.base import ToolFormat
from mlflow_phi3_onnx.openai.tools.json_reader import JsonReader, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser

__all__ = ["JsonCalls"]

_ANY_TEXT = "/(?s:.*)/"
_ARGUMENTS = ("arguments", "parameters")
_BESIDE = ("type", "id")
"""What a call without a mark may have beside its name and arguments; other objects are text."""


@dataclass(frozen=True, kw_only=True)
class JsonCalls(ToolFormat):
    """A form whose calls are JSON objects.

    A model has it if the mark is one of its control tokens or in its chat template.

    Attributes:
        name: What ``tool_format`` in ``model_config`` calls it.
        begin: The mark before calls. Its first character stands in it only there, and in ``end``
            too, so a mark that breaks off holds no beginning of another.
        end: The mark after them.
        one: A completion of nothing but one call, in Lark: ``call`` stands for the object, and
            ``{begin}`` and ``{end}`` for the marks.
        several: The same of one call or more.
        key: What a call's arguments are called.
        bare: Whether a call may also be the whole completion, without a mark.
        shown: What the template may show instead of the mark.
        others: What the template of a model with the same mark and another format shows.
    """

    name: str
    begin: str
    end: str
    one: str
    several: str
    key: str = "arguments"
    bare: bool = False
    shown: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def matches(self, model: Markings) -> bool:
        """Whether a model writes calls so, by its chat template and its control tokens."""
        shown = any(map(model.template_shows, (self.begin, *self.shown)))
        known = shown or model.control_id(self.begin) is not None
        return known and not any(map(model.template_shows, self.others))

    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls."""
        return _Parser(self, tools)

    def grammar(
        self, schemas: Mapping[str, str], model: Markings, *, required: bool, parallel: bool
    ) -> str:
        """Write the grammar of a completion that calls tools."""
        begin, end = model.terminal(self.begin), model.terminal(self.end)
        held = (self.several if parallel else self.one).format(begin=begin, end=end)
        start = [f"start: {held}"] if required else self._free(held, model)
        calls = [self._call(name, schema) for name, schema in schemas.items()]
        return "\n".join([*start, f"call: {' | '.join(calls)}"])

    def _free(self, held: str, model: Markings) -> list[str]:
        """Write the rules of a completion that is text, calls, or both if the form has it so."""
        if self.bare:
            return [f"start: TEXT | {held}", r"TEXT: /\s*([^\s{](?s:.*))?/"]
        if model.control_id(self.begin) is not None:
            return [f"start: TEXT ({held})?", f"TEXT: {_ANY_TEXT}"]
        mark = self.begin.replace("|", r"\|").replace("/", r"\/")
        inside = held.removeprefix(model.terminal(self.begin))
        return [
            f"start: TEXT | head{inside}",
            f"TEXT: {_ANY_TEXT} & ~/(?s:.*){mark}(?s:.*)/",
            f"head[lazy]: /(?s:.*){mark}/",
        ]

    def _call(self, name: str, schema: str) -> str:
        written = json.dumps(name, ensure_ascii=False)
        if not self.bare:
            head = f'{{"name": {written}, "{self.key}": '
            return f'{json.dumps(head)} %json {schema} "}}"'
        # Beside an answer's schema, an object is read in the pieces that schemas come to.
        begin, name, key = map(json.dumps, ('"name"', written, f'"{self.key}"'))
        return f'"{{" {begin} /: ?/ {name} /, ?/ {key} /: ?/ %json {schema} "}}"'


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


class _Parser:
    """Separates a completion's text from the tool calls in it, as they are written.

    Nothing is held back but what may yet become, or close, a call. What comes of a completion does
    not depend on how it was cut into deltas, for it is read a character at a time.

    The arguments that are passed on are what the model wrote; where it wrote them as a JSON string,
    what that stands for.

    Args:
        tool_format: How the model writes calls.
        tools: The tools that may be called, in OpenAI's form.
    """

    def __init__(self, tool_format: JsonCalls, tools: Sequence[Mapping[str, Any]]) -> None:
        self._format = tool_format
        self._names = {tool["function"]["name"] for tool in tools}
        self._reader = JsonReader()
        self._held = self._reader.held
        self._output = ToolCallOutput()
        self._steps = self._read()

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self._output.calls

    def add(self, text: str) -> list[Part]:
        """Take the next delta of text and return what can be passed on."""
        for char in text:
            self._reader.put(char)
            next(self._steps)
        return self._output.passed()

    def finish(self) -> list[Part]:
        """Return what was held back, now that the completion is finished."""
        self._reader.put("")
        next(self._steps, None)
        return self._output.passed()

    def _read(self) -> Reading[None]:
        """Read the completion to its end."""
        begin, end = self._format.begin, self._format.end
        fresh = True
        if self._format.bare and (yield from self._reader.spaces()) == "{":
            fresh = yield from self._block(marked=False)
        closing = ""
        while mark := (yield from self._until_mark(closing, fresh)):
            if mark == begin:
                fresh = yield from self._block(marked=True)
                closing = end if fresh else closing
            else:
                self._held.clear()
                closing = ""
                fresh = True

    def _until_mark(self, closing: str, fresh: bool) -> Reading[str]:
        """Pass text on until a mark, which is held; return it, or nothing at the end.

        Args:
            closing: The mark that closes the calls before, if it is still to come.
            fresh: Whether the completion begins here, or a call has ended. White space is then no
                text yet: before the next call, or the end, it is dropped.
        """
        begin = self._format.begin
        if fresh and not (yield from self._reader.spaces()) and self._output.calls:
            self._held.clear()
        while char := (yield from self._reader.peek()):
            if char != begin[0]:
                self._reader.take()
            elif mark := (yield from self._mark(begin, closing)):
                return mark
            elif fresh and not (yield from self._reader.peek()) and self._holds_start_of(closing):
                self._held.clear()
            fresh = False
            self._output.text(self._held)
        self._output.text(self._held)
        return ""

    def _holds_start_of(self, mark: str) -> bool:
        return mark.startswith("".join(self._held).strip())

    def _mark(self, *marks: str) -> Reading[str]:
        """Take the character that is next and what makes a mark of it; return the mark, if any."""
        text = ""
        while char := (yield from self._reader.peek()):
            if not any(mark.startswith(text + char) for mark in marks) and text:
                break
            self._reader.take()
            text += char
            if text in marks:
                return text
        return ""

    def _block(self, *, marked: bool) -> Reading[bool]:
        """Read the calls after a mark, or the one without; return whether there are any."""
        before = self._output.calls
        listed = (yield from self._reader.spaces()) == "["
        if listed:
            self._reader.take()
        while True:
            yield from self._reader.spaces()
            if not (yield from self._call(_Call(marked))):
                self._output.text(self._held)
                break
            char = yield from self._reader.spaces()
            if not listed or char not in (",", "]"):
                break
            self._reader.take()
            self._held.clear()
            if char == "]":
                break
        return self._output.calls > before

    def _call(self, call: _Call) -> Reading[bool]:
        """Read one call; return whether its arguments are whole. What is held then is no call."""
        if (yield from self._reader.peek()) != "{":
            return False
        self._reader.take()
        yield from self._reader.spaces()
        if (yield from self._members(call)) and call.name and not call.whole:
            call.early = "{}"
            self._settle(call)
        if call.begun:
            yield from self._leave(call)
        return call.whole

    def _leave(self, call: _Call) -> Reading[None]:
        """Drop the rest of a whole call; take that of a broken one for its arguments."""
        if call.whole or not (yield from self._reader.peek()):
            self._held.clear()
            return
        closing = self._format.end if call.marked else ""
        self._output.follow(self._held)
        while char := (yield from self._reader.peek()):
            if char != closing[:1]:
                self._reader.take()
                continue
            self._output.unfollow()
            if (yield from self._mark(closing)) or not (yield from self._reader.peek()):
                self._held.clear()
                return
            self._output.follow(self._held)
        self._output.unfollow()

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
            return (yield from self._arguments(call))
        if not (call.marked or call.begun or key in _BESIDE):
            return False
        return (yield from self._reader.value())

    def _arguments(self, call: _Call) -> Reading[bool]:
        char = yield from self._reader.spaces()
        text: list[str] = []
        if call.name and (call.marked or char == "{"):
            self._begin(call)
            self._output.follow(text if char == '"' else self._held)
        start = len(self._held)
        if char == '"':
            whole = yield from self._reader.string(text)
        else:
            whole = yield from self._reader.value()
            text = self._held[start:]
        if call.begun:
            self._output.unfollow()
            self._held.clear()
            call.whole = whole
            return whole
        call.early = "".join(text)
        return whole and self._settle(call)

    def _settle(self, call: _Call) -> bool:
        """Pass on what is known of a call, once it is one; return whether it may be one."""
        if not call.name:
            return True
        if not call.marked and call.early is not None and not call.early.lstrip().startswith("{"):
            return False
        if call.marked or call.early is not None:
            self._begin(call)
        if call.early is not None:
            self._output.arguments(call.early)
            call.whole = True
        return True

    def _begin(self, call: _Call) -> None:
        self._held.clear()
        if not call.begun:
            call.begun = True
            self._output.call(call.name)
