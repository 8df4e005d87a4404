"""Checks of single values: each returns the clean value or raises ValueError."""

from __future__ import annotations

import difflib
import math
import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeGuard, TypeVar

import numpy as np

from mlflow_phi3_onnx.core.schemas import OF_NAMES, allows_null

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

T = TypeVar("T")

PlainType: TypeAlias = Literal[
    "number", "true or false", "text", "list of texts", "list of integers"
]

_PLAIN: dict[tuple[str, str], PlainType] = {
    ("number", ""): "number",
    ("integer", ""): "number",
    ("boolean", ""): "true or false",
    ("string", ""): "text",
    ("array", "string"): "list of texts",
    ("array", "integer"): "list of integers",
}
"""The plain types, by a JSON schema's type and that of its items."""

MAX_SHOWN_BITS = 256
MAX_SHOWN_CHARACTERS = 80
SHOWN_NAMES = 12
NESTED = 128

MAX_EXACT_FLOAT = 2**53
"""From here on, a float may have lost digits of the integer that it was."""


class InexactError(ValueError):
    """A float where an integer belongs, which may have lost digits of it."""


@dataclass(frozen=True)
class Check(Generic[T]):
    """A check of one value.

    Attributes:
        allowed: What values it lets through, in words.
        function: Returns the clean value or raises ValueError.
        choices: The values that it lets through, where they are a few words.
        schema: The same as a JSON schema, as far as that can be said.
    """

    allowed: str
    function: Callable[[Any], T]
    choices: tuple[T, ...] = ()
    schema: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def type(self) -> PlainType | None:
        """What the values are, where they are all of one plain type, or may be lists of it."""
        form = self.schema["anyOf"][-1] if "anyOf" in self.schema else self.schema
        return _PLAIN.get((form.get("type", ""), form.get("items", {}).get("type", "")))

    def __call__(self, value: Any) -> T:
        """Return the clean value or raise ValueError."""
        return self.function(value)


def allows(allowed: str, **schema: Any) -> Callable[[Callable[[Any], T]], Check[T]]:
    """Make a check of the function that is decorated; the keywords are those of its schema."""
    return lambda function: Check(allowed, function, schema=schema)


def describe_kind(value: Any) -> str:
    """Name a value's kind for an error message, without showing text that a user wrote."""
    if value is None:
        return "null"
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN_BITS:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return str(value)
    names = {str: "a string", bytes: "bytes", dict: "an object", list: "a list", tuple: "a list"}
    name = type(value).__name__
    return names.get(type(value), f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}")


def show(value: Any) -> str:
    """Show a setting's value in an error message, cut where it is long; never a request's."""
    if isinstance(value, str | list | tuple | dict):
        return _SHORT.repr(value)
    return describe_kind(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = MAX_SHOWN_CHARACTERS


def did_you_mean(value: Any, known: Iterable[Any], alike: float = 0.6) -> str:
    """Ask for the known word that is most like a value, to end a message with; else nothing."""
    words = [word for word in known if isinstance(word, str)]
    given = value[:MAX_SHOWN_CHARACTERS] if isinstance(value, str) else ""
    close = difflib.get_close_matches(given, words, 1, alike)
    return f" Did you mean {close[0]}?" if close else ""


def is_one(value: Any, *allowed: T) -> TypeGuard[T]:
    """Tell whether a value is one of some; foreign objects are not asked if they are equal.

    Arrays and pandas' missing values answer that with no truth value.
    """
    return isinstance(value, str | float | int | None) and value in allowed


def unpacked(value: Any) -> Any:
    """Return an array, a Series or a value of NumPy's as Python's own; cells of data are such."""
    if not hasattr(value, "tolist"):
        return value
    plain = value.tolist()
    return [unpacked(item) for item in plain] if isinstance(plain, list) else plain


def without_nulls(
    value: Any, keep: Mapping[str, bool], levels: int = NESTED, *, names: bool = False
) -> Any:
    """Copy JSON without the members that are null, as Arrow pads what only other rows have.

    Args:
        value: Lists and objects, maybe within each other.
        keep: The members in whose values nulls mean something, and whether their own null does,
            unless the schema that it stands in allows no null.
        levels: How deep to look. What is nested deeper is refused elsewhere.
        names: Whether the value's keys are names of a caller's.
    """
    if not levels:
        return value
    value = unpacked(value)
    if isinstance(value, dict):
        kept = {} if names else keep
        return {
            key: item
            if key in kept
            else without_nulls(item, keep, levels - 1, names=not names and key in OF_NAMES)
            for key, item in value.items()
            if item is not None or (kept.get(key) and _may_be_null(value))
        }
    if isinstance(value, list | tuple):
        return [without_nulls(item, keep, levels - 1) for item in value]
    return value


def _may_be_null(schema: Mapping[str, Any]) -> bool:
    named, listed = unpacked(schema.get("type")), unpacked(schema.get("enum"))
    return allows_null(named, listed, nullable=schema.get("nullable") is True)


def some_of(names: Sequence[str], shown: int = SHOWN_NAMES) -> str:
    """List names for a message, the first few of many, and count the others."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def number(low: float, high: float = math.inf, *, above: bool = False) -> Check[float]:
    """Make a check for a finite number in a range, without its low end if ``above``."""
    if not above:
        allowed = f"a number from {low} to {high}"
    else:
        allowed = f"a number above {low}" + (f", up to {high}" if high < math.inf else "")

    schema: dict[str, Any] = {"type": "number", "exclusiveMinimum" if above else "minimum": low}
    if high < math.inf:
        schema["maximum"] = high

    @allows(allowed, **schema)
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            raise ValueError
        return float(value)

    return check


def integer(low: int | None = None, high: int | None = None, *, bits: int = 32) -> Check[int]:
    """Make a check for an integer in a range; ``3.0`` is one.

    Args:
        low: The least that is allowed; None for what fits into the bits.
        high: The most that is allowed; None for what fits into the bits.
        bits: The width of the number where it is used.
    """
    least = -(2 ** (bits - 1)) if low is None else low
    most = 2 ** (bits - 1) - 1 if high is None else high
    bounds = f"from {low}" + ("" if high is None else f" to {high}")

    allowed = f"an integer of {bits} bits" if low is None else f"an integer {bounds}"

    @allows(allowed, type="integer", minimum=least, maximum=most)
    def check(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            if abs(value) >= MAX_EXACT_FLOAT:
                raise InexactError
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    return check


def one_of(*allowed: T, note: str = "") -> Check[T]:
    """Make a check for one of some values; the note follows their list."""

    def check(value: Any) -> T:
        if not is_one(value, *allowed):
            raise ValueError
        return allowed[allowed.index(value)]

    said = f"one of {', '.join(map(str, allowed))}{note}"
    schema: dict[str, Any] = {"enum": list(allowed)}
    if all(isinstance(value, str) for value in allowed):
        schema["type"] = "string"
    return Check(said, check, allowed, schema)


@allows("anything")
def anything(value: Any) -> Any:
    """Let every value through."""
    return value


@allows("true or false", type="boolean")
def boolean(value: Any) -> bool:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise ValueError
    return value


@allows("a string", type="string")
def string(value: Any) -> str:
    """Check a string."""
    if not isinstance(value, str):
        raise ValueError
    return value


@allows("an object", type="object")
def json_object(value: Any) -> dict[str, Any]:
    """Check a JSON object."""
    if not isinstance(value, dict):
        raise ValueError
    return value
