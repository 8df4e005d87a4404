"""How much a field of a request may hold: judged before anything is made of it."""

from __future__ import annotations

from typing import Any

from mlflow_phi3_onnx.core.checks import unpacked
from mlflow_phi3_onnx.errors import ContextLengthError, InvalidRequestError

__all__ = ["check_amount", "check_tokens"]

MAX_VALUES = 1 << 17
"""The most values of a field, names counted too: ten thousand messages with tool calls have fewer.

An empty text costs no token, but as much time as another.
"""


def check_amount(value: Any, name: str) -> None:
    """Refuse a field that holds too many values, wherever in it they are.

    Args:
        value: The field.
        name: What to call it in messages.

    Raises:
        InvalidRequestError: If it holds more than a request may.
    """
    waiting, found = [value], 1
    while waiting:
        value = unpacked(waiting.pop())
        if isinstance(value, dict):
            found += 2 * len(value)
            inside = value.values()
        elif isinstance(value, list | tuple):
            found += len(value)
            inside = value
        else:
            continue
        if found > MAX_VALUES:
            raise InvalidRequestError(
                f"{name} must hold at most {MAX_VALUES:,} values: names, texts, numbers, lists and"
                " objects. Shorten it, or send several requests.",
                param=name,
            )
        waiting.extend(inside)


def check_tokens(count: int, context: int | None, name: str) -> None:
    """Refuse a prompt of token ids that is certainly longer than the model's context.

    Args:
        count: How many ids it has.
        context: The most tokens that are of use; None takes any number.
        name: What to call it in messages.

    Raises:
        ContextLengthError: If it is longer.
    """
    if context is not None and count > context:
        subject = "The prompt" if name == "prompt" else name
        raise ContextLengthError(
            f"{subject} has {count:,} tokens; the model's maximum context length is {context:,}"
            " tokens. Shorten it."
        )
