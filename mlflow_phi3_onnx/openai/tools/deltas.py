"""What comes of a completion that may call tools: text, and deltas of calls."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ID_LENGTH",
    "Part",
    "Reasoning",
    "ToolCallOutput",
    "reasoning_of",
    "whole_message",
]


@dataclass(frozen=True)
class Reasoning:
    """What a model thinks before it answers.

    Attributes:
        text: The thought, or a part of it.
    """

    text: str


Part: TypeAlias = str | Reasoning | dict[str, Any]
"""A part of a completion: text, reasoning, or an entry of a chunk's ``tool_calls``."""

ID_LENGTH = 9
"""How many letters and digits a call's id has: Mistral's templates take no other."""

_ID_CHARACTERS = string.ascii_letters + string.digits


def whole_message(parts: Iterable[Part]) -> tuple[str, list[dict[str, Any]]]:
    """Put the parts of a completion together, to its text and the ``tool_calls`` of its message."""
    text = ""
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            text += part
        elif isinstance(part, Reasoning):
            continue
        elif "id" in part:
            call = {"id": part["id"], "type": "function", "function": {**part["function"]}}
            calls.append(call)
        else:
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return text, calls


def reasoning_of(parts: Iterable[Part]) -> str:
    """Put the thoughts of a completion together."""
    return "".join(part.text for part in parts if isinstance(part, Reasoning))


class ToolCallOutput:
    """Where a parser puts what it has read, in the order in which it was written.

    Attributes:
        calls: How many calls there were so far.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._parts: list[Part] = []
        self._followed: list[str] = []

    def text(self, characters: list[str]) -> None:
        """Pass characters on as text, and empty their list."""
        self._parts += characters
        characters.clear()

    def reasoning(self, text: str) -> None:
        """Pass reasoning on."""
        self._parts.append(Reasoning(text))

    def call(self, name: str) -> None:
        """Begin a call of a tool."""
        function = {"name": name, "arguments": ""}
        call_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(ID_LENGTH))
        self._parts.append(
            {"index": self.calls, "id": call_id, "type": "function", "function": function}
        )
        self.calls += 1

    def arguments(self, text: str) -> None:
        """Go on with the arguments of the last call: JSON, as the model wrote it."""
        self._parts.append({"index": self.calls - 1, "function": {"arguments": text}})

    def follow(self, characters: list[str]) -> None:
        """Take arguments out of a list from now on, as it fills, until :meth:`unfollow`."""
        self._followed = characters

    def unfollow(self) -> None:
        """Take what is in the followed list, and nothing that comes after."""
        self._take_followed()
        self._followed = []

    def passed(self) -> list[Part]:
        """Return what was passed on since the last time, with neighbours of a kind joined."""
        self._take_followed()
        passed = [
            part for kind, parts in groupby(self._parts, _kind) for part in _joined(kind, parts)
        ]
        self._parts.clear()
        return passed

    def _take_followed(self) -> None:
        if self._followed:
            self.arguments("".join(self._followed))
            self._followed.clear()


def _kind(part: Part) -> Any:
    """Tell what a part can be joined to: parts of the same kind."""
    return "id" in part if isinstance(part, dict) else type(part)


def _joined(kind: Any, parts: Iterable[Part]) -> Iterable[Part]:
    """Join neighbouring texts, or arguments, which are then of one call."""
    if kind is str:
        return ["".join(map(str, parts))]
    if kind is not False:
        return parts
    listed = [part for part in parts if isinstance(part, dict)]
    text = "".join(part["function"]["arguments"] for part in listed)
    return [{**listed[0], "function": {"arguments": text}}]
