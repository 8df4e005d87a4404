r"""Tells which regular expressions of a tokenizer take time in proportion to the text.

The tokenizers library runs them with Oniguruma, which tries one way of matching after another:
``(a+)+$`` takes minutes for a kilobyte, and nothing can stop it meanwhile. So an expression is read
here, and the ways that it can try from one character on are counted. Two forms may try more, since
what they pass over in vain is taken by what follows; every published tokenizer of this kind has
them: ``\s*[\r\n]+|\s+(?!\S)`` and ``[A]*[B]+|[A]+[B]*``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

__all__ = ["is_linear"]

_LONGEST = 4096
_DEPTH = 32
_MOST_WAYS = 4096
"""How many ways may be tried from one character on. Published expressions have up to 50."""

_ESCAPE = r"\\(?:[pP]\{\^?\w+\}|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^a-zA-Z0-9]|"
_CHARACTER = re.compile(_ESCAPE + r"[sSdDwWhHnrtfvae])|[^\\()\[\]|*+?^$]")
_IN_CLASS = re.compile(_ESCAPE + r"[sSdDwWhHnrtfvae])|[^\\\[\]]")
_PLACE = re.compile(r"\\[bBAzZ]|[\^$]")
_OPENING = re.compile(r"\((?:(?P<look>\?<?[=!])|\?[im]*(?:-[im]*)?:|\?>|\?<[a-zA-Z]\w*>|(?!\?))")
_TIMES = re.compile(r"([*+?])([?+]?)|\{(\d{1,6})(?:(,)(\d{0,6}))?\}(\??)|\{,(\d{1,6})\}(\??)")


class _UnknownError(Exception):
    """A part of an expression is not known here."""


@dataclass(frozen=True)
class _Part:
    """One part of a branch, and how often it stands there.

    Attributes:
        text: How it is written, without how often.
        branches: What a group holds; none for a single character or a place.
        look: Whether it only looks, ahead or behind.
        least: How often at least.
        most: How often at most.
        mode: ``?`` for as seldom as possible, ``+`` where nothing is given back.
    """

    text: str
    branches: list[list[_Part]] = field(default_factory=list["list[_Part]"])
    look: bool = False
    least: int = 1
    most: float = 1
    mode: str = ""


def is_linear(expression: str) -> bool:
    """Tell whether an expression surely takes time in proportion to the text that it splits."""
    if len(expression) > _LONGEST:
        return False
    try:
        branches = _Reader(expression.removeprefix("(?i)")).read()
    except _UnknownError:
        return False
    while len(branches) == 1 and len(branches[0]) == 1 and branches[0][0].branches:
        (part,) = branches[0]
        if part.look or (part.least, part.most) != (1, 1):
            break
        branches = part.branches
    ways = [
        1 if math.isinf(_ways(branch)) and _is_made_good(branches[i:]) else _ways(branch)
        for i, branch in enumerate(branches)
    ]
    return sum(ways) <= _MOST_WAYS


class _Reader:
    """Reads an expression in Oniguruma's syntax, as far as tokenizers need it."""

    def __init__(self, expression: str) -> None:
        self._text = expression
        self._at = 0

    def read(self) -> list[list[_Part]]:
        branches = self._branches(0)
        if self._at < len(self._text):
            raise _UnknownError
        return branches

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match

    def _branches(self, depth: int) -> list[list[_Part]]:
        if depth > _DEPTH:
            raise _UnknownError
        branches: list[list[_Part]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == "|":
                self._at += 1
                branches.append([])
            else:
                branches[-1].append(self._repeated(self._part(depth)))
        return branches

    def _part(self, depth: int) -> _Part:
        start = self._at
        if self._take(_PLACE):
            return _Part(self._text[start : self._at], [[]], look=True)
        if opening := self._take(_OPENING):
            branches = self._branches(depth + 1)
            if self._at == len(self._text):
                raise _UnknownError
            self._at += 1
            text = self._text[start : self._at]
            return _Part(text, branches, look=bool(opening["look"]))
        if self._text[self._at] == "[":
            self._class()
        elif not self._take(_CHARACTER):
            raise _UnknownError
        return _Part(self._text[start : self._at])

    def _class(self) -> None:
        """Pass over a class of characters, which may hold others."""
        depth = 0
        while True:
            if self._text.startswith("[", self._at):
                depth += 1
                self._at += 1 + self._text.startswith("^", self._at + 1)
                if self._text.startswith("]", self._at):
                    raise _UnknownError  # a character here, and the end elsewhere
            elif self._text.startswith("]", self._at):
                depth -= 1
                self._at += 1
                if not depth:
                    return
            elif not self._take(_IN_CLASS):
                raise _UnknownError

    def _repeated(self, part: _Part) -> _Part:
        while times := self._take(_TIMES):
            if part.most != 1 or part.least != 1:
                part = _Part(part.text, [[part]])
            sign, mode, low, comma, high, lazy, up_to, lazy_up_to = times.groups()
            if sign:
                least, most = int(sign == "+"), 1 if sign == "?" else math.inf
            else:
                least = int(low or 0)
                most = int(high or up_to or 0) or (math.inf if comma else least)
                # Oniguruma reads "{3}?" as "three or none".
                mode = lazy or lazy_up_to or ""
                least = 0 if mode else least
            if least > most:
                raise _UnknownError
            part = replace(part, least=least, most=most, mode=mode)
        return part


def _can_fail(part: _Part) -> bool:
    if part.least == 0:
        return False
    return part.look or not part.branches or all(map(_any_fails, part.branches))


def _any_fails(branch: list[_Part]) -> bool:
    return any(map(_can_fail, branch))


def _ways(branch: list[_Part], *, fails_after: bool = False) -> float:
    """Count the ways that a branch tries from one character on, at most.

    Args:
        branch: The branch.
        fails_after: Whether what follows it can fail, so that all its ways are tried.
    """
    ways = 1.0
    for part in reversed(branch):
        ways *= _ways_of_part(part, fails_after=fails_after)
        fails_after = fails_after or _can_fail(part)
    return ways


def _ways_of_part(part: _Part, *, fails_after: bool) -> float:
    # Where nothing fails after it, what is repeated is passed over once, and taken.
    most = part.most if fails_after else max(part.least, 1)
    again = fails_after or part.look or part.least > 1
    once = sum(_ways(branch, fails_after=again) for branch in part.branches) or 1.0
    several = once > 1 and most * math.log2(once) > math.log2(_MOST_WAYS)
    all_times = math.inf if several else once**most if once > 1 else 1
    return max(part.least, most - part.least + 1, all_times)


def _is_made_good(branches: list[list[_Part]]) -> bool:
    """Tell whether the run of characters that a branch passes over in vain is taken after it.

    Every branch from it on must pass over the same run, until one takes it, or all but its last
    character: a run is then passed over once by each, and never again.
    """
    first = _run_of(branches[0])
    for branch in branches:
        run = _run_of(branch)
        if first is None or run is None or run[:2] != first[:2]:
            return False
        _, text, mode, rest = run
        left = [(part.text, part.least, part.most) for part in rest]
        if text == r"\s" and not mode and left == [(r"(?!\S)", 1, 1)]:
            return True
        if mode != "?" and not _any_fails(rest):
            return True
    return False


def _run_of(branch: list[_Part]) -> tuple[tuple[object, ...], str, str, list[_Part]] | None:
    """Take a branch apart: what stands before its first run, the run's character, what follows."""
    for i, part in enumerate(branch):
        if math.isinf(part.most):
            before, rest = branch[:i], branch[i + 1 :]
            sound = not part.branches and part.least <= 1
            if not sound or math.isinf(_ways(before, fails_after=True) * _ways(rest)):
                return None
            start = tuple((p.text, p.least, p.most, p.mode) for p in before)
            return start, part.text, part.mode, rest
    return None
