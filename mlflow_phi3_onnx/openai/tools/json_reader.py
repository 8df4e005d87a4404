"""JSON that arrives in chunks, read a character at a time.

Readers are generators that wait, in a ``yield``, for the next character. So what they read is
written down as if all the text were there, and how the text was cut can make no difference.
"""

from __future__ import annotations

import re
import string
from collections.abc import Generator
from typing import TypeAlias, TypeVar

__all__ = ["JsonReader", "Reading"]

_T = TypeVar("_T")
Reading: TypeAlias = Generator[None, None, _T]
"""A reader: it yields where it needs the next character, and returns what it has read."""

_SPACES = frozenset(" \t\n\r")
_SCALAR_CHARACTERS = frozenset(string.ascii_letters + string.digits + "+-.")
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_HEX_DIGITS = frozenset(string.hexdigits)
_ESCAPED = dict(zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))


class JsonReader:
    """Reads JSON (RFC 8259) from characters that are fed to it.

    A reader leaves the first character that does not belong to what it reads for the next one.

    Attributes:
        held: The characters that were taken and not yet passed on.
    """

    def __init__(self) -> None:
        self.held: list[str] = []
        self._next: str | None = None

    def put(self, char: str) -> None:
        """Make a character the next one; ``""`` stands for the end."""
        self._next = char

    def peek(self) -> Reading[str]:
        """Return the next character, or ``""`` at the end, and leave it there."""
        if self._next is None:
            yield
        assert self._next is not None
        return self._next

    def take(self) -> None:
        """Take the character that was peeked at."""
        assert self._next
        self.held.append(self._next)
        self._next = None

    def put_back(self) -> None:
        """Make the character that was taken last the next one again."""
        assert self._next is None
        self._next = self.held.pop()

    def mark(self, *marks: str) -> Reading[str]:
        """Take the characters that are next while they make a mark; return the mark, if any."""
        text = ""
        while char := (yield from self.peek()):
            if not any(mark.startswith(text + char) for mark in marks):
                break
            self.take()
            text += char
            if text in marks:
                return text
        return ""

    def spaces(self) -> Reading[str]:
        """Take white space and return the character after it."""
        while (char := (yield from self.peek())) in _SPACES:
            self.take()
        return char

    def value(self) -> Reading[bool]:
        """Take white space and one value; return whether it is whole, and not broken or cut."""
        closers: list[str] = []
        while True:
            char = yield from self.spaces()
            if char in ("{", "["):
                self.take()
                closers.append("}" if char == "{" else "]")
                if (yield from self.spaces()) != closers[-1]:
                    if char == "{" and not (yield from self.key([])):
                        return False
                    continue
            elif not (yield from self.string([]) if char == '"' else self._scalar()):
                return False
            while closers:
                char = yield from self.spaces()
                if char not in (",", closers[-1]):
                    return False
                self.take()
                if char == ",":
                    yield from self.spaces()
                    if closers[-1] == "}" and not (yield from self.key([])):
                        return False
                    break
                closers.pop()
            else:
                return True

    def key(self, into: list[str]) -> Reading[bool]:
        """Take an object's key and its colon; return whether they are there."""
        if not (yield from self.string(into)) or (yield from self.spaces()) != ":":
            return False
        self.take()
        return True

    def string(self, into: list[str]) -> Reading[bool]:
        """Take a string; return whether it is whole.

        Args:
            into: Gets the text that the string stands for. Half a surrogate pair stays an escape,
                because it is no character.
        """
        if (yield from self.peek()) != '"':
            return False
        self.take()
        high = ""
        while (char := (yield from self.peek())) >= " ":
            self.take()
            unit = (yield from self.escape()) if char == "\\" else char
            if high and "\udc00" <= unit <= "\udfff":
                into.append((high + unit).encode("utf-16", "surrogatepass").decode("utf-16"))
                high = ""
                continue
            if high:
                # Where the text ends inside the next escape, that may have been the other half.
                if unit or (yield from self.peek()):
                    into.append(_escape_of(high))
                high = ""
            if not unit or (char == '"'):
                return bool(unit)
            if "\ud800" <= unit <= "\udbff":
                high = unit
            else:
                into.append(_escape_of(unit) if "\udc00" <= unit <= "\udfff" else unit)
        return False

    def escape(self) -> Reading[str]:
        """Take an escape after its backslash; return its character, or nothing if it is none."""
        char = yield from self.peek()
        if char in _ESCAPED:
            self.take()
            return _ESCAPED[char]
        if char != "u":
            return ""
        self.take()
        digits = yield from self.hex_digits(4)
        return chr(int(digits, 16)) if len(digits) == 4 else ""

    def hex_digits(self, count: int) -> Reading[str]:
        """Take hexadecimal digits, as many as there are up to a number of them."""
        digits = ""
        while len(digits) < count and (char := (yield from self.peek())) in _HEX_DIGITS:
            self.take()
            digits += char
        return digits

    def _scalar(self) -> Reading[bool]:
        text = ""
        while (char := (yield from self.peek())) in _SCALAR_CHARACTERS:
            self.take()
            text += char
        return _SCALAR.fullmatch(text) is not None


def _escape_of(unit: str) -> str:
    return f"\\u{ord(unit):04x}"
