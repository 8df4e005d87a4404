"""Tool calls as tags around names and values, whose texts have no quotes.

A value becomes JSON by its parameter's type: a text stays one, others are parsed, and what does not
parse is a text. It ends where its closing tag is followed by what may follow it, so that a text may
hold the tag.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.formats.marked import MarkedFormat, MarkedParser
from mlflow_phi3_onnx.openai.tools.kinds import ALL_KINDS, kind_of, kinds_of
from mlflow_phi3_onnx.openai.tools.literal_reader import json_of_literal, json_text
from mlflow_phi3_onnx.openai.tools.schema_rules import SchemaRules, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser
    from mlflow_phi3_onnx.openai.tools.json_reader import Reading

__all__ = ["TaggedCalls"]


@dataclass(frozen=True, kw_only=True)
class TaggedCalls(MarkedFormat):
    """A form whose calls are tags.

    Attributes:
        head: What stands before a tool's name, after the mark.
        named: What may stand after the name; what begins with ``<`` belongs to what follows.
        key: The tag before a parameter's name.
        keyed: The tag after it.
        value: The tag before its value, or nothing.
        valued: The tag after it.
        call_end: The tag after the parameters, or nothing where the mark after calls does for it.
        gap: What stands around values.
        tight: What the template shows where nothing stands between tags, else a line ends there.
    """

    head: str = ""
    named: tuple[str, ...]
    key: str
    keyed: str
    value: str = ""
    valued: str
    call_end: str = ""
    gap: str = ""
    tight: str = ""

    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls."""
        return _Parser(self, tools)

    def _call_rules(self, schemas: Mapping[str, str], model: Markings) -> list[str]:
        rules = _Rules(self, "" if self.tight and model.template_shows(self.tight) else "\n")
        for name, schema in schemas.items():
            rules.add("call", rules.call(name, json.loads(schema)))
        return rules.lines()


class _Rules(SchemaRules):
    """Arguments in tags.

    Args:
        tags: The form.
        line: What stands between tags.
    """

    def __init__(self, tags: TaggedCalls, line: str) -> None:
        super().__init__()
        self._tags = tags
        self._line = line

    def call(self, name: str, schema: dict[str, Any]) -> str:
        """Write a call of a tool, in Lark."""
        tags = self._tags
        self.check_key(name, not set(name) & set("<>\n"))
        head = f"{tags.head}{name}{tags.head and '>'}{self._line}"
        end = tags.call_end and quoted(tags.call_end + self._line)
        return f"{quoted(head)} {self.arguments(schema)} {end}"

    def member(self, key: str | None, schema: Any) -> str:
        """Write one argument, in Lark."""
        tags = self._tags
        after = f"{tags.keyed}{tags.value and self._line}{tags.value}{tags.gap}"
        end = f"{tags.gap}{tags.valued}"
        if key is None:
            head = f"{quoted(tags.key)} NAME {quoted(after)}"
        else:
            self.check_key(key, not set(key) & set("<>\n") and key == key.strip())
            head = quoted(tags.key + key + after)
        value = self._value(schema, end)
        return f"{head} {value} {quoted(self._line)}" if self._line else f"{head} {value}"

    def _value(self, schema: Any, end: str) -> str:
        kinds = self.kinds(schema)
        if "string" not in kinds:
            return f"{self.json(schema)} {quoted(end)}"
        tags = self._tags
        marks = [mark for mark in (tags.key, tags.valued, tags.call_end) if mark]
        ways = [self.text(branch, end, marks=marks) for branch in self.texts(schema)]
        if "null" in kinds and kinds != ALL_KINDS:
            ways.append(quoted(f"null{end}"))
        return f"({' | '.join(ways)})"


class _Parser(MarkedParser):
    """Reads one call after a mark.

    Args:
        tags: The form.
        tools: The tools that may be called, in OpenAI's form.
    """

    def __init__(self, tags: TaggedCalls, tools: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(tools, (tags.begin, *tags.begins), tags.end)
        self._tags = tags
        self._parameters = {
            tool["function"]["name"]: tool["function"].get("parameters") for tool in tools
        }
        self._after = tuple(mark for mark in (tags.key, tags.call_end, tags.end) if mark)
        # A value whose own closing tag is missing ends with the whole call.
        ends = ("", "\n") if tags.call_end else ()
        self._forgotten = tuple(f"{tags.call_end}{line}{tags.end}" for line in ends)
        self._written: list[str] = []

    def _block(self, mark: str) -> Reading[bool]:
        name = yield from self._name(mark)
        if not name:
            self._output.text(self._held)
            return False
        self._held.clear()
        self._output.call(name)
        self._written.clear()
        self._output.follow(self._written)
        follower = yield from self._first()
        before = "{"
        while follower == self._tags.key:
            follower = yield from self._argument(name, before)
            before = ", "
        whole = follower in self._after
        if whole:
            self._emit("{}" if before == "{" else "}")
        elif before == "{" and (yield from self._reader.peek()) == "{":
            whole, follower = yield from self._object()
        self._ended = whole and follower == self._tags.end
        self._output.unfollow()
        yield from self._leave(whole=whole, closing=self._end)
        return True

    def _object(self) -> Reading[tuple[bool, str]]:
        """Read arguments that are a JSON object; return whether they are whole, and what is after.

        Models write them so that were taught another form before.
        """
        self._output.unfollow()
        self._held.clear()
        self._output.follow(self._held)
        whole = yield from self._reader.value()
        self._output.unfollow()
        return whole, (yield from self._first()) if whole else ""

    def _name(self, mark: str) -> Reading[str]:
        """Take the name of a known tool and the tags around it; return it, if it is there."""
        yield from self._reader.spaces()
        head = self._tags.head
        if head not in ("", mark) and not (yield from self._reader.mark(head)):
            return ""
        ends = {name + end: name for name in self._names for end in self._tags.named}
        found = yield from self._reader.mark(*ends)
        if found.endswith("<"):
            self._reader.put_back()
        return ends.get(found, "")

    def _first(self) -> Reading[str]:
        yield from self._reader.spaces()
        return (yield from self._reader.mark(*self._after))

    def _emit(self, text: str) -> None:
        self._held.clear()
        self._written.append(text)

    def _argument(self, name: str, before: str) -> Reading[str]:
        """Read one argument; return the tag that was taken after it, or nothing."""
        self._held.clear()
        key: list[str] = []
        if not (yield from self._until(self._tags.keyed, key)):
            return ""
        if self._tags.value:
            yield from self._reader.spaces()
            if not (yield from self._reader.mark(self._tags.value)):
                return ""
        named = "".join(key).strip()
        parameters = self._parameters[name]
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        schema = properties.get(named, {}) if isinstance(properties, dict) else {}
        kinds = kinds_of(schema, parameters)
        head = f"{before}{json_text(named)}: "
        if kinds == frozenset(["string"]):
            self._emit(f'{head}"')
            follower, whole = yield from self._value(lambda text: self._emit(json_text(text)[1:-1]))
            if whole:
                self._emit('"')
            return follower
        read: list[str] = []
        follower, whole = yield from self._value(read.append)
        if whole:
            self._emit(head + _json_of("".join(read), kinds))
        return follower

    def _until(self, mark: str, into: list[str]) -> Reading[bool]:
        """Take what is before a mark on the same line, and the mark."""
        while (char := (yield from self._reader.peek())) not in ("", "\n", "<"):
            if char == mark[0]:
                break
            self._reader.take()
            into.append(char)
        return bool((yield from self._reader.mark(mark)))

    def _value(self, put: Any) -> Reading[tuple[str, bool]]:
        """Read a value, and pass on its text; return the tag after it, and whether it is whole."""
        gap = self._tags.gap
        self._held.clear()
        if gap and (yield from self._reader.peek()) == gap:
            self._reader.take()
        self._held.clear()
        while char := (yield from self._reader.peek()):
            if char not in ("<", gap):
                self._reader.take()
                put(char)
                self._held.clear()
                continue
            if char == gap:
                self._reader.take()
                if (yield from self._reader.peek()) not in ("", "<"):
                    put(char)
                    self._held.clear()
                    continue
            mark = yield from self._reader.mark(self._tags.valued, *self._forgotten)
            if mark in self._forgotten:
                return self._tags.end, True
            while mark == self._tags.valued:
                length = len(self._held)
                yield from self._reader.spaces()
                mark = yield from self._reader.mark(*self._after, mark)
                if mark in self._after:
                    return mark, True
                if mark:
                    at = len(self._held) - len(mark)
                    at -= at > length and self._held[at - 1] == gap
                    text, tag = self._held[:at], self._held[at:]
                    put("".join(text))
                    self._held[:] = tag
            if not (yield from self._reader.peek()):
                break
            put("".join(self._held))
            self._held.clear()
        return "", False


def _json_of(text: str, kinds: frozenset[str]) -> str:
    """Write a value as JSON, by what its parameter allows."""
    read = json_of_literal(text.strip())
    if read is None:
        return json_text(text)
    kind = kind_of(json.loads(read, parse_int=lambda _: 0))
    as_text = "string" in kinds and (kind == "string" or kind not in kinds)
    return json_text(text) if as_text else read
