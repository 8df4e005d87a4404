"""Tool calls as JSON objects with a name and arguments, after a mark or alone.

After a mark, a call is one when the name of a known tool is whole; without a mark, when its
arguments have begun as an object too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.formats.marked import MarkedFormat, MarkedParser
from mlflow_phi3_onnx.openai.tools.schema_rules import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser
    from mlflow_phi3_onnx.openai.tools.json_reader import Reading

__all__ = ["Call", "JsonCallParser", "JsonCalls", "json_call_rules"]

_ARGUMENTS = ("arguments", "parameters")
_BESIDE = ("type", "id")
"""What a call without a mark may have beside its name and arguments; other objects are text."""


@dataclass(frozen=True, kw_only=True)
class JsonCalls(MarkedFormat):
    """A form whose calls are JSON objects.

    Attributes:
        key: What a call's arguments are called.
    """

    key: str = "arguments"

    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls."""
        return JsonCallParser(tools, (self.begin,), self.end, self.bare)

    def _call_rules(self, schemas: Mapping[str, str], model: Markings) -> list[str]:  # noqa: ARG002 - every model writes JSON alike
        return json_call_rules(schemas, self.key, in_pieces=bool(self.bare))


def json_call_rules(
    schemas: Mapping[str, str], key: str = "arguments", *, in_pieces: bool = False
) -> list[str]:
    """Write the rule of a call as a JSON object.

    Args:
        schemas: The JSON schema of each tool's arguments, by the tool's name.
        key: What a call's arguments are called.
        in_pieces: Whether an object may also be an answer, which is read in the pieces that its
            schema comes to: the longest match must not be a call's.
    """

    def call(name: str, schema: str) -> str:
        written = json.dumps(name, ensure_ascii=False)
        if not in_pieces:
            head = f'{{"name": {written}, "{key}": '
            return f'{quoted(head)} %json {schema} "}}"'
        begin, named, given = map(quoted, ('"name"', written, f'"{key}"'))
        return f'"{{" {begin} /: ?/ {named} /, ?/ {given} /: ?/ %json {schema} "}}"'

    return [f"call: {' | '.join(call(*item) for item in schemas.items())}"]


@dataclass
class Call:
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


class JsonCallParser(MarkedParser):
    """Reads calls that are JSON objects.

    The arguments that are passed on are what the model wrote; where it wrote them as a JSON string,
    what that stands for.
    """

    def _block(self, mark: str) -> Reading[bool]:
        """Read the calls after a mark, or without one; return whether there are any.

        They may be in a list, or one after the other with a comma, a semicolon or nothing between.
        """
        before = self._output.calls
        listed = (yield from self._reader.spaces()) == "["
        if listed:
            self._reader.take()
        while True:
            yield from self._reader.spaces()
            if not (yield from self._call(Call(bool(mark)))):
                self._output.text(self._held)
                break
            char = yield from self._reader.spaces()
            if listed and char not in (",", "]"):
                break
            if listed:
                self._reader.take()
                self._held.clear()
            elif char in (",", ";"):
                self._reader.take()
                char = yield from self._reader.spaces()
            if char in ("", "]") or not (listed or self._may_begin(char)):
                break
        return self._output.calls > before

    def _may_begin(self, char: str) -> bool:
        """Whether a call may begin with a character."""
        return char == "{"

    def _call(self, call: Call) -> Reading[bool]:
        """Read one call; return whether its arguments are whole. What is held then is no call."""
        if (yield from self._reader.peek()) != "{":
            return False
        self._reader.take()
        yield from self._reader.spaces()
        if (yield from self._members(call)) and call.name and not call.whole:
            call.early = "{}"
            self._settle(call)
        if call.begun:
            yield from self._leave(whole=call.whole, closing=self._end if call.marked else "")
        return call.whole

    def _members(self, call: Call) -> Reading[bool]:
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

    def _member(self, key: str, call: Call) -> Reading[bool]:
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

    def _arguments(self, call: Call) -> Reading[bool]:
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

    def _settle(self, call: Call) -> bool:
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

    def _begin(self, call: Call) -> None:
        self._held.clear()
        if not call.begun:
            call.begun = True
            self._output.call(call.name)
