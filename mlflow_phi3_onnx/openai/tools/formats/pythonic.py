"""Calls as Python writes them, in a list: LFM2's between marks, Llama's as the completion.

Their arguments have names, and are literals; they are read as data and written on as JSON. A call
is one when its name is followed by an argument's name or the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.formats.json_calls import Call, JsonCallParser
from mlflow_phi3_onnx.openai.tools.formats.marked import MarkedFormat
from mlflow_phi3_onnx.openai.tools.literal_reader import PYTHON
from mlflow_phi3_onnx.openai.tools.schema_rules import SchemaRules, constants, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser
    from mlflow_phi3_onnx.openai.tools.json_reader import Reading

__all__ = ["LFM2", "PYTHONIC"]


@dataclass(frozen=True, kw_only=True)
class _Pythonic(MarkedFormat):
    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls."""
        return _Parser(tools, (self.begin,), self.end, self.bare)

    def _call_rules(self, schemas: Mapping[str, str], model: Markings) -> list[str]:  # noqa: ARG002 - no marks inside
        rules = _Rules()
        for name, schema in schemas.items():
            arguments = rules.arguments(json.loads(schema))
            rules.add("call", f'{quoted(f"{name}(")} {arguments} ")"')
        return rules.lines()


class _Rules(SchemaRules):
    """Values as JSON has them, but for Python's constants."""

    between = '", "'

    def member(self, key: str | None, schema: Any) -> str:
        if key is None:
            return f'NAME "=" {self.json(schema)}'
        self.check_key(key, key.isidentifier())
        return f"{quoted(f'{key}=')} {self.value(schema)}"

    def value(self, schema: Any) -> str:
        kinds = self.kinds(schema)
        if kinds == frozenset(["boolean"]) and constants(schema) is None:
            return '("True" | "False")'
        return '"None"' if kinds == frozenset(["null"]) else self.json(schema)


class _Parser(JsonCallParser):
    """Reads such calls, and JSON objects in their place, which LFM2 writes when it is asked to."""

    def _call(self, call: Call) -> Reading[bool]:
        if (yield from self._reader.peek()) == "{":
            return (yield from super()._call(call))
        mark = yield from self._reader.mark(*(f"{name}(" for name in self._names))
        if not mark:
            return False
        call.name = mark.removesuffix("(")
        written: list[str] = []
        self._output.follow(written)

        def emit(text: str) -> None:
            self._begin(call)
            written.append(text)

        call.whole = yield from self._reader.literal(PYTHON, emit, within=")", sets="=")
        self._output.unfollow()
        if call.begun:
            yield from self._leave(whole=call.whole, closing=self._end if call.marked else "")
        return call.whole

    def _may_begin(self, char: str) -> bool:
        return char == "{" or any(name.startswith(char) for name in self._names)


_LIST = '"[" call (", " call)* "]"'
LFM2 = _Pythonic(
    name="lfm2",
    begin="<|tool_call_start|>",
    end="<|tool_call_end|>",
    one='{begin} "[" call "]" {end}',
    several=f"{{begin}} {_LIST} {{end}}",
)
PYTHONIC = _Pythonic(
    name="pythonic",
    begin="<|python_start|>",
    end="<|python_end|>",
    one='"[" call "]"',
    several=_LIST,
    bare="[",
    shown=("[func_name1(",),
    needs=("[func_name1(",),
)
