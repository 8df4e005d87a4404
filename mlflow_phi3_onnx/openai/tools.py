"""Tool calls in a model's text, in the forms that open models write them.

==========  ===================================================================
Phi-4-mini  ``<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>``
Hermes      ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, repeated
Llama 3     ``{"name": ..., "parameters": {...}}`` as the whole answer, maybe after
            ``<|python_tag|>``
==========  ===================================================================
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["ToolCallParser"]

_MARKS = {
    "<|tool_call|>": "<|/tool_call|>",
    "<tool_call>": "</tool_call>",
    "<|python_tag|>": "<|eom_id|>",
}


class ToolCallParser:
    """Separates an answer's text from the tool calls in it.

    Text is passed on as it comes, until a call may begin; calls are known when the answer ends.
    What looks like a call but names no known tool, or is not valid JSON, stays text.

    Args:
        names: The names of the tools that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._passed = False

    def add(self, text: str) -> str:
        """Take the next piece of text and return what can be passed on."""
        self._held += text
        if not self._passed and self._held.lstrip()[:1] in ("", "{"):
            return ""
        marks = [at for mark in _MARKS if (at := self._held.find(mark)) >= 0]
        end = min(marks) if marks else len(self._held) - self._overlap()
        if not self._passed and not self._held[:end].strip():
            return ""
        out, self._held = self._held[:end], self._held[end:]
        self._passed = self._passed or bool(out)
        return out

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest of the text and the calls, in OpenAI's form."""
        held, self._held = self._held, ""
        calls = self._parse(held)
        return ("", calls) if calls else (held, [])

    def _overlap(self) -> int:
        return max(
            next((n for n in range(len(mark) - 1, 0, -1) if self._held.endswith(mark[:n])), 0)
            for mark in _MARKS
        )

    def _parse(self, text: str) -> list[dict[str, Any]]:
        text = text.strip()
        if text.startswith("{"):
            return self._calls([text])
        bodies: list[str] = []
        while text:
            mark = next((m for m in _MARKS if text.startswith(m)), None)
            if mark is None:
                return []
            body, _, text = text[len(mark) :].partition(_MARKS[mark])
            bodies.append(body)
            text = text.strip()
        return self._calls(bodies)

    def _calls(self, bodies: list[str]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        for body in bodies:
            try:
                value = _load(body)
            except (ValueError, RecursionError):
                return []
            for entry in value if isinstance(value, list) else [value]:
                call = self._call(entry)
                if call is None:
                    return []
                calls.append(call)
        return calls

    def _call(self, entry: Any) -> dict[str, Any] | None:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = entry.get("arguments", entry.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = _load(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        function = {"name": name, "arguments": _dump(arguments)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _load(text: str) -> Any:
    """Read JSON, without the numbers that only Python's reader takes for it."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _dump(value: Any) -> str:
    """Write JSON that is valid UTF-8: half a surrogate pair stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
