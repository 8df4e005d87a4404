"""Checks of single values: each returns the clean value or raises ValueError."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EXACT_FLOAT = 2**53
"""From here on, a float may have lost digits of the integer that it was."""


def describe_kind(value: Any) -> str:
    """Name a value's kind for an error message, without showing text that a user wrote."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return str(value)
    names = {str: "a string", bytes: "bytes", dict: "an object", list: "a list", tuple: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def number(low: float, high: float, *, above: bool = False) -> Callable[[Any], float]:
    """Make a check for a finite number in a range, without its low end if ``above``."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            raise ValueError
        return float(value)

    return check


def integer(low: int, high: int) -> Callable[[Any], int]:
    """Make a check for an integer in a range; ``3.0`` is one."""

    def check(value: Any) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return check


def boolean(value: Any) -> bool:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def string(value: Any) -> str:
    """Check a string."""
    if not isinstance(value, str):
        raise ValueError
    return value


def json_object(value: Any) -> dict[str, Any]:
    """Check a JSON object."""
    if not isinstance(value, dict):
        raise ValueError
    return value


def one_of(value: Any, allowed: tuple[str, ...]) -> str:
    """Check that a value is one of some words."""
    if value not in allowed:
        raise ValueError
    return value
