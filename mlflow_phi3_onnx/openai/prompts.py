"""Checks of the prompts of completions: one text or several, one list of token ids or several."""

from __future__ import annotations

from typing import Any

from mlflow_phi3_onnx.core.checks import integer
from mlflow_phi3_onnx.core.request import TextPrompt, TokenPrompt
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai.fields import refusal

__all__ = ["FORMS", "MAX_COMPLETIONS", "check_ids", "check_prompts", "check_text"]

MAX_COMPLETIONS = 2048
"""The most completions of one request, over all of its prompts."""

FORMS = "a string, a list of strings, a list of token ids or a list of lists of token ids"
"""What a prompt of completions may be, in words."""

_ADVICE = f" prompt must be {FORMS}."

_token_id = integer(0, 2**31 - 1)


def check_prompts(value: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    """Check prompts in one of the four forms of OpenAI's completions API.

    Args:
        value: A string, a list of strings, a list of token ids, or a list of lists of token ids.

    Raises:
        InvalidRequestError: If it is none of them; the message names the entry at fault.
    """
    if isinstance(value, str):
        return (TextPrompt(value),)
    if not isinstance(value, list | tuple) or not value:
        raise refusal("prompt", FORMS, value, none="it is missing")
    if not isinstance(value[0], str | list | tuple):
        return (TokenPrompt(check_ids(value, "prompt", _ADVICE)),)
    if len(value) > MAX_COMPLETIONS:
        raise InvalidRequestError(
            f"prompt must hold at most {MAX_COMPLETIONS:,} prompts; got {len(value):,}. Send"
            " several requests.",
            param="prompt",
        )
    one = _text if isinstance(value[0], str) else _tokens
    return tuple(one(item, f"prompt[{i}]") for i, item in enumerate(value))


def check_text(value: Any, name: str = "prompt", advice: str = "") -> tuple[TextPrompt]:
    """Check a prompt that can only be one text.

    Args:
        value: The text.
        name: What to call it in messages.
        advice: What to do with several, for the end of the message.

    Raises:
        InvalidRequestError: If it is no string.
    """
    if not isinstance(value, str):
        raise refusal(name, "a string", value, advice, none="it is missing")
    return (TextPrompt(value, name),)


def check_ids(value: Any, name: str, advice: str = "") -> tuple[int, ...]:
    """Check token ids. Whether the vocabulary has them is for the model to say.

    Args:
        value: A list of integers from 0, at least one.
        name: What to call it in messages.
        advice: What else it may be, for the end of the message.

    Raises:
        InvalidRequestError: If it is no such list; the message names the entry at fault.
    """
    if not isinstance(value, list | tuple) or not value:
        raise refusal(name, "a list of token ids, at least one", value, advice)
    ids: list[int] = []
    for i, item in enumerate(value):
        try:
            ids.append(_token_id(item))
        except ValueError as error:
            where = f"{name}[{i}]"
            raise refusal(where, "a token id, an integer from 0", item, advice) from error
    return tuple(ids)


def _text(value: Any, where: str) -> TextPrompt:
    if not isinstance(value, str):
        raise refusal(where, "a string, as prompt[0] is", value, _ADVICE)
    return TextPrompt(value, where)


def _tokens(value: Any, where: str) -> TokenPrompt:
    return TokenPrompt(check_ids(value, where, _ADVICE), where)
