"""What comes of a completion that may call tools: text, and parts of calls."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Part", "ToolCallDelta", "ToolCallOutput", "whole_message"]


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a tool call.

    Attributes:
        index: Which of the completion's calls it is.
        id: The call's id, on its first part alone.
        name: The tool's name, on its first part alone.
        arguments: What was written of the arguments since the part before.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""

    def delta(self) -> dict[str, Any]:
        """Return the part as an entry of a chunk's ``tool_calls``."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


Part: TypeAlias = str | ToolCallDelta
"""A part of a completion: text, or a part of a call."""


def whole_message(parts: Iterable[Part]) -> tuple[str, list[dict[str, Any]]]:
    """Put the parts of a completion together, to its text and the ``tool_calls`` of its message."""
    text = ""
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            text += part
        elif part.name is None:
            calls[part.index]["function"]["arguments"] += part.arguments
        else:
            call = part.delta()
            del call["index"]
            calls.append(call)
    return text, calls


class ToolCallOutput:
    """Where a format's reader puts what it has read, in the order in which it was written.

    Attributes:
        calls: How many calls there were so far.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._parts: list[Part] = []
        self._text: list[str] = []
        self._followed: list[str] | None = None

    def text(self, characters: list[str]) -> None:
        """Pass characters on as text, and empty their list."""
        self._text += characters
        characters.clear()

    def call(self, name: str, call_id: str | None = None) -> None:
        """Begin a call.

        Args:
            name: The tool's name.
            call_id: The id that the model gave the call, where its format has ids.
        """
        self._add(ToolCallDelta(self.calls, call_id or f"call_{uuid.uuid4().hex[:24]}", name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """Go on with the arguments of the last call: JSON, as the model wrote it."""
        self._add(ToolCallDelta(self.calls - 1, arguments=text))

    def follow(self, characters: list[str]) -> None:
        """Take arguments out of a list from now on, as it fills, until :meth:`unfollow`."""
        self._followed = characters

    def unfollow(self) -> None:
        """Take what is in the followed list, and nothing that comes after."""
        self._take_followed()
        self._followed = None

    def passed(self) -> list[Part]:
        """Return what was passed on since the last time."""
        self._take_followed()
        self._join_text()
        parts, self._parts = self._parts, []
        return parts

    def _take_followed(self) -> None:
        if self._followed:
            self.arguments("".join(self._followed))
            self._followed.clear()

    def _add(self, part: ToolCallDelta) -> None:
        self._join_text()
        self._parts.append(part)

    def _join_text(self) -> None:
        if self._text:
            self._parts.append("".join(self._text))
            self._text.clear()
