"""The items of a response, as they are written: whole, and in typed events."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    Event: TypeAlias = dict[str, Any]
    """An event without its number."""

__all__ = ["Call", "Event", "Item", "Message", "TextTokens", "Thought", "new_id"]


def new_id(prefix: str) -> str:
    """Make an id that is not guessed."""
    return f"{prefix}_{uuid.uuid4().hex}"


class Item(ABC):
    """An item of a response's output, while it is written.

    Args:
        index: Its place in the output.
    """

    prefix: ClassVar[str]
    delta_of: ClassVar[str]

    def __init__(self, index: int) -> None:
        self._written: list[str] = []
        self._id = new_id(self.prefix)
        self._at: dict[str, Any] = {"item_id": self._id, "output_index": index}

    @property
    def text(self) -> str:
        """What was written so far."""
        return "".join(self._written)

    @abstractmethod
    def whole(self, status: str) -> dict[str, Any]:
        """Return the item as it is by now."""

    def begin(self) -> list[Event]:
        """Return the events of its beginning."""
        return [self._item_event("added", "in_progress")]

    def add(self, text: str, **more: Any) -> list[Event]:
        """Go on with the text; return the events."""
        self._written.append(text)
        return [self._event(f"{self.delta_of}.delta", delta=text, **more)]

    def end(self, status: str) -> list[Event]:
        """Return the events of its end."""
        return [self._item_event("done", status)]

    def _event(self, name: str, /, **more: Any) -> Event:
        return {"type": f"response.{name}", **self._at, **more}

    def _item_event(self, name: str, status: str) -> Event:
        index = self._at["output_index"]
        whole = self.whole(status)
        return {"type": f"response.output_item.{name}", "output_index": index, "item": whole}


class _InParts(Item):
    """An item whose text is one content part."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._at["content_index"] = 0
        self._begun = False

    def begin(self) -> list[Event]:
        added = super().begin()
        self._begun = True
        return [*added, self._event("content_part.added", part=self._part())]

    def end(self, status: str) -> list[Event]:
        return [
            self._event(f"{self.delta_of}.done", text=self.text, **self._beside()),
            self._event("content_part.done", part=self._part()),
            *super().end(status),
        ]

    def whole(self, status: str) -> dict[str, Any]:
        return {"id": self._id, "status": status, "content": [self._part()] * self._begun}

    def _part(self) -> dict[str, Any]:
        return {"type": self.delta_of, "text": self.text, **self._beside()}

    def _beside(self) -> dict[str, Any]:
        return {}


class Thought(_InParts):
    """Reasoning: the thought itself, without a summary."""

    prefix = "rs"
    delta_of = "reasoning_text"

    def whole(self, status: str) -> dict[str, Any]:
        """Return the item as it is by now."""
        return {**super().whole(status), "type": "reasoning", "summary": []}


class Message(_InParts):
    """A message with one text."""

    prefix = "msg"
    delta_of = "output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[dict[str, Any]] = []

    def add(self, text: str, **more: Any) -> list[Event]:
        """Go on with the text and the ``logprobs`` of its tokens; return the events."""
        self._logprobs += more["logprobs"]
        return super().add(text, **more)

    def whole(self, status: str) -> dict[str, Any]:
        """Return the item as it is by now."""
        return {**super().whole(status), "type": "message", "role": "assistant"}

    def _beside(self) -> dict[str, Any]:
        return {"logprobs": [*self._logprobs]}

    def _part(self) -> dict[str, Any]:
        return {**super()._part(), "annotations": []}


class Call(Item):
    """A call of a function.

    Args:
        index: Its place in the output.
        call_id: The id that its result names.
        name: The function.
    """

    prefix = "fc"
    delta_of = "function_call_arguments"

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self._call = {"type": "function_call", "call_id": call_id, "name": name}

    def end(self, status: str) -> list[Event]:
        """Return the events of its end."""
        told = {"name": self._call["name"], "arguments": self.text}
        return [self._event(f"{self.delta_of}.done", **told), *super().end(status)]

    def whole(self, status: str) -> dict[str, Any]:
        """Return the item as it is by now."""
        return {"id": self._id, **self._call, "arguments": self.text, "status": status}


class TextTokens:
    """Finds the tokens of a completion's texts, between those of marks and of what else it holds.

    A token of two texts counts to the first.

    Entries are those of chat's log-probabilities, in the order of the tokens.
    """

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._used = 0  # bytes of the first one that waits

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Take the next entries."""
        self._waiting += entries

    def take(self, text: str) -> list[dict[str, Any]]:
        """Return the entries of the next text, and forget those before it.

        Where it is not found, for tokens that are no whole characters, it is all that are there.
        """
        if not self._waiting:
            return []
        spans: list[tuple[int, int]] = []
        raw = b""
        for entry in self._waiting:
            spans.append((len(raw), len(raw) + len(entry["bytes"])))
            raw += bytes(entry["bytes"])
        start = raw.find(text.encode(), self._used)
        end = len(raw) if start < 0 else start + len(text.encode())
        first = max(start, self._used)
        taken = [
            entry
            for entry, (begin, until) in zip(self._waiting, spans, strict=True)
            if begin >= self._used and begin < end and until > first
        ]
        left = sum(until <= end for _, until in spans)
        self._used = end - spans[left][0] if left < len(spans) else 0
        del self._waiting[:left]
        return taken
