"""The config of a deployment: one table that checks what came and writes the help.

MLflow's command line hands every value over as text and the Python client as what it is, so every
option reads both.
"""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Option:
    """One key of a deployment's config.

    Attributes:
        name: The key.
        read: Turns a value, or its text, into what is kept. Raises ValueError with the text of
            what is allowed.
        default: The default, as the help shows it.
        about: What it does, for the help.
        private: Whether messages must not repeat the value.
    """

    name: str
    read: Callable[[Any], Any]
    default: str
    about: str
    private: bool = False


def read_config(options: Sequence[Option], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check a config against the table.

    Args:
        options: The table.
        config: What the caller gave.

    Returns:
        The checked values. A key that came as None or as an empty text stands for its default
        and is None.

    Raises:
        UnsupportedParameterError: A key is not in the table.
        InvalidRequestError: A value is not what its option takes.
    """
    known = {option.name: option for option in options}
    checked: dict[str, Any] = {}
    for name, value in (config or {}).items():
        if name not in known:
            raise UnsupportedParameterError(
                f"The deployment config has no key {name!r}. Its keys: {', '.join(known)}.",
                param=f"config.{name}",
            )
        try:
            checked[name] = None if value is None or value == "" else known[name].read(value)
        except ValueError as error:
            came = f"a {type(value).__name__}" if known[name].private else repr(value)
            raise InvalidRequestError(
                f"The deployment config's {name!r} takes {error}, not {came}.",
                param=f"config.{name}",
            ) from None
    return checked


def merge(kept: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config that holds after a change, without the keys that went back to their default."""
    return {name: value for name, value in {**kept, **changes}.items() if value is not None}


def describe(options: Sequence[Option]) -> str:
    """The table as text."""
    width = max(len(option.name) for option in options) + 2
    return "\n".join(
        textwrap.fill(
            f"{option.about} (default: {option.default})",
            width=96,
            initial_indent=f"  {option.name:<{width}}",
            subsequent_indent=" " * (width + 2),
        )
        for option in options
    )


def text(value: Any) -> str:
    """Read a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value.strip()


def choice(*allowed: str) -> Callable[[Any], str]:
    """Make a reader of one of some words."""

    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return str(value)

    return read


def whole_number(least: int, most: int | None = None) -> Callable[[Any], int]:
    """Make a reader of a whole number within bounds, both included."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(value: Any) -> int:
        message = f"a whole number {bounds}"
        if isinstance(value, str):
            number = int(value) if value.strip().isascii() and value.strip().isdigit() else None
        else:
            number = value if isinstance(value, int) and not isinstance(value, bool) else None
        if number is None or number < least or (most is not None and number > most):
            raise ValueError(message)
        return number

    return read


def seconds(value: Any) -> float:
    """Read a positive number of seconds."""
    message = "a number of seconds above 0"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(message)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(message) from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError(message)
    return number


def json_object(value: Any) -> dict[str, Any]:
    """Read a JSON object, or the text of one."""
    message = "a JSON object with text keys"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(message) from None
    if not isinstance(value, dict):
        raise ValueError(message)
    read = cast("dict[Any, Any]", value)
    if not all(isinstance(key, str) for key in read):
        raise ValueError(message)
    try:
        return json.loads(json.dumps(read, allow_nan=False))
    except (TypeError, ValueError):
        raise ValueError(f"{message} and JSON values") from None
