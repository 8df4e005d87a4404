"""Values that are written almost as JSON, read a character at a time and written on as JSON.

Models write Python's literals, or keys and texts with quotes of their own. What is read is data:
nothing is evaluated, and what is no literal is not read.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from mlflow_phi3_onnx.openai.tools.json_reader import JsonReader, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PYTHON", "LiteralReader", "Notation", "json_of_literal", "json_text"]

MAX_DEPTH = 64

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PYTHON_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9_]*\.?[0-9_]*)")
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null", "nil": "null"}
_AFTER_TEXT = (",", ")", "]", "}", ":")
_CLOSERS = {"{": "}", "[": "]"}
_ESCAPES = {"'": "'", "\n": "", "a": "\a", "v": "\v", "0": "\0"}
_HEX = {"x": 2, "U": 8}


class Notation(NamedTuple):
    """How values are written.

    Attributes:
        quotes: The marks around texts.
        escapes: Whether a backslash escapes in texts; a quote then ends its text only where
            something may follow, because models forget to escape.
        words: Whether a word without quotes is a text too.
    """

    quotes: tuple[str, ...]
    escapes: bool
    words: bool


PYTHON = Notation(('"', "'"), escapes=True, words=True)
_STRICT = PYTHON._replace(words=False)


class LiteralReader(JsonReader):
    """Reads literals, besides JSON."""

    def literal(
        self, notation: Notation, emit: Callable[[str], None], *, within: str = "", sets: str = ":"
    ) -> Reading[bool]:
        """Take one value and write it as JSON; return whether it is whole.

        Args:
            notation: How it is written.
            emit: Gets the parts of the JSON, each as soon as it is certain; what was taken for it
                is then no longer held.
            within: What closes the object whose beginning was taken already, if one was. It is not
                written before its first key, or its end.
            sets: What stands between the keys and values of that object.
        """
        closers = [within] if within else []
        before = "{" if within else ""
        opened = bool(within)
        while True:
            if not opened:
                char = yield from self.spaces()
                if char in _CLOSERS and len(closers) < MAX_DEPTH:
                    self.take()
                    emit(char)
                    closers.append(_CLOSERS[char])
                    opened = True
                elif not (yield from self._atom(notation, emit)):
                    return False
            while closers:
                char = yield from self.spaces()
                if char == closers[-1]:
                    self.take()
                    emit(("{" if before == "{" else "") + ("]" if closers.pop() == "]" else "}"))
                    before, opened = "", False
                elif opened and char:
                    break
                elif char != ",":
                    return False
                else:
                    self.take()
                    before, opened = ", ", True
            else:
                return True
            opened = False
            if closers[-1] != "]":
                key: list[str] = []
                if not (yield from self._key(notation, sets if len(closers) == 1 else ":", key)):
                    return False
                before += f"{json_text(''.join(key))}: "
            if before:
                emit(before)
                before = ""

    def text(self, notation: Notation, emit: Callable[[str], None]) -> Reading[bool]:
        """Take a text in quotes and pass on its characters; return whether it is whole."""
        quote = yield from self.mark(*notation.quotes)
        if not quote:
            return False
        if notation.escapes and (yield from self.peek()) == quote:
            self.take()
            if (char := (yield from self.peek())) != quote:
                return char != ""
            self.take()
            quote *= 3
        while char := (yield from self.peek()):
            if char == quote[0]:
                if (yield from self._ends(quote, notation, emit)):
                    return True
                continue
            self.take()
            if char == "\\" and notation.escapes:
                char = yield from self._python_escape()
                if not char and not (yield from self.peek()):
                    return False
            emit(char)
        return False

    def _ends(self, quote: str, notation: Notation, emit: Callable[[str], None]) -> Reading[bool]:
        """Take what may be the end of a text; return whether it is, else it is a part of it."""
        start = len(self.held)
        closed = yield from self.mark(quote)
        if closed and (not notation.escapes or (yield from self.spaces()) in _AFTER_TEXT):
            return True
        if not (yield from self.peek()):
            return False
        emit("".join(self.held[start:]))
        return False

    def _python_escape(self) -> Reading[str]:
        """Take an escape after its backslash; what is none stands for itself."""
        char = yield from self.peek()
        if char in _ESCAPES:
            self.take()
            return _ESCAPES[char]
        start = len(self.held)
        if char in _HEX:
            self.take()
            digits = yield from self.hex_digits(_HEX[char])
            code = int(digits, 16) if len(digits) == _HEX[char] else -1
            unit = chr(code) if 0 <= code <= 0x10FFFF else ""
        else:
            unit = yield from self.escape()
        if unit or not (yield from self.peek()):
            return unit
        return "\\" + "".join(self.held[start:])

    def _key(self, notation: Notation, separator: str, into: list[str]) -> Reading[bool]:
        """Take an object's key and what stands between it and its value."""
        char = yield from self.peek()
        if separator == ":" and any(quote[0] == char for quote in notation.quotes):
            if not (yield from self.text(notation, into.append)):
                return False
        elif word := (yield from self._word(separator + ",)]}([{\"'\n")).strip():
            into.append(word)
        else:
            return False
        if (yield from self.spaces()) != separator:
            return False
        self.take()
        if separator == ":":
            return True
        return "".join(into).isidentifier() and (yield from self.peek()) not in ("", "=")

    def _word(self, stops: str) -> Reading[str]:
        text = ""
        while (char := (yield from self.peek())) and char not in stops:
            self.take()
            text += char
        return text

    def _atom(self, notation: Notation, emit: Callable[[str], None]) -> Reading[bool]:
        """Take a text, a number or a word."""
        char = yield from self.peek()
        if any(quote[0] == char for quote in notation.quotes):
            opened = False

            def characters(text: str) -> None:
                nonlocal opened
                emit(("" if opened else '"') + json_text(text)[1:-1])
                opened = True

            whole = yield from self.text(notation, characters)
            if whole:
                emit('"' if opened else '""')
            return whole
        word = (yield from self._word(",]})([{")).strip()
        if (yield from self.peek()) not in (",", "]", "}", ")"):
            return False
        written = _scalar(word)
        if written is None and notation.words and word:
            written = json_text(word)
        if written is None:
            return False
        emit(written)
        return True


def json_of_literal(text: str) -> str | None:
    """Return a whole literal as JSON, or None if the text is none."""
    reader = LiteralReader()
    written: list[str] = []
    steps = reader.literal(_STRICT, written.append)
    left = len(text) + 2
    try:
        next(steps)
        for char in f"[{text}]":
            left -= 1
            reader.put(char)
            next(steps)
    except StopIteration as stopped:
        listed = "".join(written)
        if stopped.value and not left and len(json.loads(listed, parse_int=str)) == 1:
            return listed[1:-1]
    return None


def json_text(text: str) -> str:
    """Write a text as JSON; half a surrogate pair stays an escape, because it is no character."""
    written = json.dumps(text, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half.group()):04x}", written)


def _scalar(word: str) -> str | None:
    """Write a number or a constant as JSON; return None for what is neither."""
    if _NUMBER.fullmatch(word):
        return word
    if constant := _WORDS.get(word.lower()):
        return constant
    if len(word) > 64 or not _PYTHON_NUMBER.fullmatch(word):
        return None
    try:
        return str(int(word, 10 if word.lstrip("+-").isdigit() else 0))
    except ValueError:
        pass
    try:
        return json.dumps(float(word))
    except ValueError:
        return None
