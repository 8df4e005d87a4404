"""Mistral's calls: a list of objects after one mark, or each after a mark with its name first.

Tokenizers up to the third version have the list (Mistral 7B 0.3, Nemo). Later ones have
``[ARGS]`` (Small 3.1 and after, Devstral, Ministral 3), and one of them the call's id before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools.formats.json_calls import (
    Call,
    JsonCallParser,
    JsonCalls,
    json_call_rules,
)
from mlflow_phi3_onnx.openai.tools.schema_rules import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolCallParser
    from mlflow_phi3_onnx.openai.tools.json_reader import Reading

__all__ = ["FORMAT"]

_ARGUMENTS = "[ARGS]"
_ID = "[CALL_ID]"


@dataclass(frozen=True, kw_only=True)
class _Mistral(JsonCalls):
    def parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallParser:
        """Make a reader of one completion's calls."""
        return _Parser(tools, (self.begin,), self.end)

    def _held(self, model: Markings, *, parallel: bool) -> str:
        if not _names_first(model):
            return super()._held(model, parallel=parallel)
        return "{begin} call ({begin} call)*" if parallel else "{begin} call"

    def _call_rules(self, schemas: Mapping[str, str], model: Markings) -> list[str]:
        if not _names_first(model):
            return json_call_rules(schemas)
        head = model.terminal(_ARGUMENTS)
        if model.template_shows(_ID):
            head = f"{model.terminal(_ID)} ID {head}"
        calls = [f"{quoted(name)} {head} %json {schema}" for name, schema in schemas.items()]
        return [f"call: {' | '.join(calls)}", "ID: /[a-zA-Z0-9]{9}/"]


def _names_first(model: Markings) -> bool:
    return model.template_shows(_ARGUMENTS) or model.control_id(_ARGUMENTS) is not None


class _Parser(JsonCallParser):
    """Reads both forms."""

    def _call(self, call: Call) -> Reading[bool]:
        if (yield from self._reader.peek()) == "{":
            return (yield from super()._call(call))
        after = (_ARGUMENTS, _ID, "{")
        mark = yield from self._reader.mark(
            *(name + text for name in self._names for text in after)
        )
        if mark.endswith(_ID):
            while (yield from self._reader.peek()).isalnum():
                self._reader.take()
            mark = mark.removesuffix(_ID) + (yield from self._reader.mark(_ARGUMENTS))
        if mark.endswith("{"):
            self._reader.put_back()
        call.name = mark.removesuffix("{").removesuffix(_ARGUMENTS)
        if call.name == mark:
            return False
        self._begin(call)
        yield from self._arguments(call)
        yield from self._leave(whole=call.whole, closing=self._end)
        return call.whole

    def _may_begin(self, char: str) -> bool:
        return char == "{" or any(name.startswith(char) for name in self._names)


FORMAT = _Mistral(
    name="mistral",
    begin="[TOOL_CALLS]",
    end="",
    one='{begin} "[" call "]"',
    several='{begin} "[" call (", " call)* "]"',
)
