"""What a chat template may spend.

Everything that a template does costs work, in units of about one character that is read or written,
and a rendering has :data:`MAX_WORK` of them. So it ends, and what it makes fits in memory, whatever
the template is. The prices are rough: they keep a rendering within seconds and a few hundred
megabytes, and leave an ordinary one, of a whole context's text, twenty times what it needs.
"""

from __future__ import annotations

import re
import string
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator

__all__ = [
    "MAX_WORK",
    "NODE",
    "STEP",
    "Metered",
    "OverspentError",
    "brace_format",
    "budget",
    "compute",
    "copy",
    "percent_format",
    "read",
    "spend",
]

MAX_WORK = 1 << 26
"""The work of one rendering, and of one compilation."""

STEP = 64
"""What a call costs, and an item that is looked at."""

NODE = 4
"""What an expression in a loop's or a macro's body costs, each time."""

MAX_DEPTH = 100
"""How deeply values that are read may be nested."""

MAX_BITS = 1024
"""How long integers may be, where a template computes with them."""

MAX_PADDING = 999
"""The widest field, and the highest precision, that a format may ask for."""

# Numbers above MAX_PADDING: in a {} field, digits of any script; in a % field, also widths that are
# values.
_WIDE_BRACES = re.compile(r"[^\D0]\d{3}")
_WIDE_PERCENT = re.compile(r"[0-9.*+\- #hlL]*(\*|[1-9][0-9]{3})")

_POINTER = 8
_INTEGER = 32

_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_SEQUENCES = (list, tuple, set, frozenset, *_VIEWS)


class OverspentError(Exception):
    """The template wants to do more than :data:`MAX_WORK` allows."""


class _Budget:
    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_WORK


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def budget() -> Generator[None]:
    """Give what runs inside a fresh budget."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def spend(work: int) -> None:
    """Take work out of the budget.

    Raises:
        OverspentError: If there is not enough left.
    """
    budget = _budget.get()
    budget.left -= work
    if budget.left < 0:
        raise OverspentError


def read(value: Any, depth: int = 0) -> int:
    """Pay for reading a value as a whole, and return the price.

    What is held several times is paid for as often, for that is how it is written and compared.

    Raises:
        OverspentError: If it is too large.
        SecurityError: If it is not data, such as a function.
    """
    if isinstance(value, str):
        price = len(value)
    elif value is None or isinstance(value, bool | float | jinja2.Undefined | Metered):
        return 0
    elif isinstance(value, int):
        price = value.bit_length() // 8
    elif isinstance(value, range):
        price = _INTEGER * len(value)
    elif depth == MAX_DEPTH:
        raise OverspentError
    elif isinstance(value, dict):
        return _read_items(value, depth + 1) + _read_items(value.values(), depth + 1)
    elif isinstance(value, _SEQUENCES):
        return _read_items(value, depth + 1)
    elif isinstance(value, Namespace):
        return read(object.__getattribute__(value, "__dict__"), depth + 1)
    else:
        raise SecurityError(f"a template may not read a {type(value).__name__}")
    spend(price)
    return price


def _read_items(items: Collection[Any], depth: int) -> int:
    steps = STEP * len(items)
    spend(steps)
    texts = nested = 0
    for item in items:
        if type(item) is str:
            texts += len(item)
        else:
            nested += read(item, depth)
    spend(texts)
    return steps + texts + nested


def copy(value: Any) -> int:
    """Pay for going through a value, but not into its items, and return the price."""
    if isinstance(value, str):
        price = len(value)
    elif isinstance(value, range):
        price = _INTEGER * len(value)
    elif isinstance(value, (dict, *_SEQUENCES)):
        price = _POINTER * len(value)
    else:
        return 0
    spend(price)
    return price


class Metered:
    """An iterator whose items cost a step each."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def __iter__(self) -> Metered:
        return self

    def __next__(self) -> Any:
        spend(STEP)
        return next(self._items)


def compute(operator: str, left: Any, right: Any) -> None:
    """Pay for ``left <operator> right``, before it is done.

    Raises:
        OverspentError: If it makes too much.
    """
    spend(STEP)
    if operator == "%" and isinstance(left, str):
        spend(percent_format(left, right))
    elif operator == "*" and isinstance(left, int) != isinstance(right, int):
        count, items = (left, right) if isinstance(left, int) else (right, left)
        spend(max(_bounded(count), 0) * copy(items))
    elif isinstance(left, int) and isinstance(right, int):
        bits = _bounded(left).bit_length()
        _bounded(right)
        if operator == "**" and bits * max(right, 0) > MAX_BITS:
            raise OverspentError
    elif isinstance(left, list | tuple):
        copy(left)
        copy(right)
    else:
        read(left)
        read(right)


def _bounded(number: int) -> int:
    if number.bit_length() > MAX_BITS:
        raise OverspentError
    return number


def percent_format(form: str, values: Any) -> int:
    """Return what ``form % values`` may grow to."""
    fields = form.replace("%%", "").split("%")[1:]
    if any(_WIDE_PERCENT.match(_after_key(field)) for field in fields):
        raise OverspentError
    return len(form) + len(fields) * (read(values) + MAX_PADDING)


def brace_format(form: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return what ``form.format(*args, **kwargs)`` may grow to.

    Raises:
        SecurityError: If a field looks inside a value.
    """
    parts = string.Formatter().parse(form)
    fields = [(name, spec or "") for _, name, spec, _ in parts if name is not None]
    if any("." in name or "[" in name for name, _ in fields):
        raise SecurityError("a format may not look inside its values")
    if any("{" in spec or _WIDE_BRACES.search(spec) for _, spec in fields):
        raise OverspentError
    return len(form) + len(fields) * (read(args) + read(kwargs) + MAX_PADDING)


def _after_key(field: str) -> str:
    """Cut the ``(key)`` off a field; keys may hold parentheses."""
    depth = 0
    for at, letter in enumerate(field):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return field[at + (letter == ")") :]
    return ""
