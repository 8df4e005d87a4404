"""Finds many texts in a text, as quickly as a few: thousands may have one beginning."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Found", "TextFinder", "sorted_texts_begin"]

_NEVER = "(?!)"
_MOST_FIRST = 16
"""Beginnings that the regular expression tries one after the other."""


class Found(NamedTuple):
    """A text that was found, and where.

    Attributes:
        start: Where it begins.
        text: What it is.
    """

    start: int
    text: str

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + len(self.text)


class TextFinder:
    """Finds texts from left to right, at each place the longest.

    Args:
        texts: The texts, none of them empty.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted(texts)
        self._longest = max(map(len, self._texts), default=0)
        self._starts = re.compile(_starts_of(self._texts))
        # The place of the longest other text that each text begins with, -1 for none.
        self._shorter: list[int] = []
        open_texts: list[int] = []
        for i, text in enumerate(self._texts):
            while open_texts and not text.startswith(self._texts[open_texts[-1]]):
                open_texts.pop()
            self._shorter.append(open_texts[-1] if open_texts else -1)
            open_texts.append(i)

    def find(self, text: str) -> Iterator[Found]:
        """Yield what is found in a text, in order and without overlaps."""
        at = 0
        while start := self._starts.search(text, at):
            at = start.start()
            found = self._longest_at(text, at)
            if found:
                yield Found(at, found)
            at += len(found) or 1

    def is_in(self, text: str) -> bool:
        """Tell whether any is in a text."""
        return next(self.find(text), None) is not None

    def replace(self, text: str, make: Callable[[str], str]) -> str:
        """Put something else in the place of each text that is found."""
        parts: list[str] = []
        at = 0
        for found in self.find(text):
            parts += [text[at : found.start], make(found.text)]
            at = found.end
        return "".join([*parts, text[at:]])

    def _longest_at(self, text: str, at: int) -> str:
        window = text[at : at + self._longest]
        # All texts that the window begins with are beginnings of the last one that sorts before it.
        i = bisect_right(self._texts, window) - 1
        while i >= 0 and not window.startswith(self._texts[i]):
            i = self._shorter[i]
        return self._texts[i] if i >= 0 else ""


def sorted_texts_begin(texts: list[str], beginning: str) -> bool:
    """Tell whether any of sorted texts begins with another text, and goes on."""
    i = bisect_right(texts, beginning)
    return i < len(texts) and texts[i].startswith(beginning)


def _starts_of(texts: list[str]) -> str:
    """Write an expression for where a text can begin: its first two characters, or the first."""
    seconds: dict[str, set[str]] = {}
    for text in texts:
        seconds.setdefault(text[0], set()).add(text[1:2])
    if len(seconds) > _MOST_FIRST:
        return f"[{''.join(map(re.escape, seconds))}]"
    return (
        "|".join(
            re.escape(first) + ("" if "" in after else f"[{''.join(map(re.escape, after))}]")
            for first, after in seconds.items()
        )
        or _NEVER
    )
