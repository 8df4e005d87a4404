"""Gemma 4's calls: a name and an object whose texts have marks for quotes, and its keys none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.formats.marked import (
    MarkedFormat,
    MarkedParser,
)
from mlflow_phi3_onnx.openai.tools.literal_reader import Notation
from mlflow_phi3_onnx.openai.tools.schema_rules import SchemaRules, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser
    from mlflow_phi3_onnx.openai.tools.json_reader import Reading

__all__ = ["FORMAT"]

_QUOTE = '<|"|>'
_NOTATION = Notation((_QUOTE, '"'), escapes=False, words=True)
_PREFIX = "call:"


@dataclass(frozen=True, kw_only=True)
class _Gemma4(MarkedFormat):
    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls."""
        return _Parser(tools, (self.begin,), self.end)

    def _call_rules(self, schemas: Mapping[str, str], model: Markings) -> list[str]:
        rules = _Rules(model.terminal(_QUOTE))
        for name, schema in schemas.items():
            members = rules.arguments(json.loads(schema))
            rules.add("call", f'{quoted(f"{_PREFIX}{name}{{")} {members} "}}"')
        return rules.lines()


class _Rules(SchemaRules):
    between = '","'

    def __init__(self, quote: str) -> None:
        super().__init__()
        self._quote = quote

    def member(self, key: str | None, schema: Any) -> str:
        if key is None:
            return f'NAME ":" {self.value(schema)}'
        self.check_key(key, not set(key) & set(',:()[]{}"<\n') and key == key.strip() != "")
        return f"{quoted(f'{key}:')} {self.value(schema)}"

    def value(self, schema: Any) -> str:
        return self.nested(schema)

    def string(self, schema: Mapping[str, Any]) -> str:
        end = self._quote if self._quote.startswith("<[") else _QUOTE
        return f"{self._quote} {self.text(schema, end)}"


class _Parser(MarkedParser):
    """Reads one call after a mark."""

    def _block(self, mark: str) -> Reading[bool]:  # noqa: ARG002 - there is only one
        yield from self._reader.spaces()
        yield from self._reader.mark(_PREFIX)
        name = yield from self._reader.mark(*(f"{name}{{" for name in self._names))
        if not name:
            self._output.text(self._held)
            return False
        self._held.clear()
        self._output.call(name.removesuffix("{"))
        written: list[str] = []
        self._output.follow(written)

        def emit(text: str) -> None:
            self._held.clear()
            written.append(text)

        whole = yield from self._reader.literal(_NOTATION, emit, within="}")
        self._output.unfollow()
        yield from self._leave(whole=whole, closing=self._end)
        return True


FORMAT = _Gemma4(
    name="gemma4",
    begin="<|tool_call>",
    end="<tool_call|>",
    one="{begin} call {end}",
    several="{begin} call {end} ({begin} call {end})*",
)
