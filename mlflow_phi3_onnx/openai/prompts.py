"""Checks of what a completion goes on from: messages, texts or token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import (
    NESTED,
    allows,
    describe_kind,
    integer,
    is_one,
    unpacked,
    without_nulls,
)
from mlflow_phi3_onnx.core.request import TextPrompt, TokenPrompt
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.amount import check_amount, check_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FORMS",
    "MAX_COMPLETIONS",
    "MESSAGES",
    "PROMPT",
    "check_continued",
    "check_ids",
    "check_messages",
    "check_prompts",
    "check_text",
    "dumped",
    "prediction",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 10_000
MAX_PREDICTION_CHARACTERS = 1 << 20
_NULLS_MEAN = {"arguments": False}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}

# What OpenAI's APIs, vLLM's, Anthropic's and Hugging Face's templates call the others.
_OTHER_PARTS = {
    *("image_url", "input_image", "image", "image_embeds", "image_pil"),
    *("input_audio", "audio_url", "audio", "audio_embeds", "video_url", "input_video", "video"),
    *("file", "input_file", "file_url", "document", "search_result", "container_upload"),
    *("thinking", "redacted_thinking", "reasoning", "tool_use", "tool_result", "tool_reference"),
}

MAX_COMPLETIONS = 2048
"""The most completions of one request, over all of its prompts."""

FORMS = "a string, a list of strings, a list of token ids or a list of lists of token ids"
"""What a prompt of completions may be, in words."""

MESSAGES: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "enum": list(ROLES)},
            "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
        },
    },
    "minItems": 1,
}
"""What messages are, as a JSON schema."""

_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
PROMPT: Mapping[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        _TOKENS,
        {"type": "array", "items": _TOKENS},
    ]
}
"""What a prompt of completions is, as a JSON schema."""

_ADVICE = f" prompt must be {FORMS}."

MAX_ID = 2**31 - 1
_token_id = integer(0, MAX_ID)


def check_messages(value: Any) -> tuple[dict[str, Any], ...]:
    """Check messages and return them as chat templates expect them.

    Null values are left out, content parts are joined to one text, and the role ``developer``
    becomes ``system``, which it replaced in OpenAI's API.

    Args:
        value: A list of messages, each with ``role`` and ``content``.

    Raises:
        InvalidRequestError: If it is not that; the message names the field.
    """
    if value is None:
        raise InvalidRequestError(
            "messages is missing. Send a list of objects with role and content.", param="messages"
        )
    value = unpacked(value)
    if not isinstance(value, list | tuple):
        raise _refusal("messages", "a list of objects with role and content", value)
    if not value:
        raise InvalidRequestError("messages must hold at least one message.", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"messages must hold at most {MAX_MESSAGES:,} messages; got {len(value):,}.",
            param="messages",
        )
    check_amount(value, "messages")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def check_continued(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check that the last of checked messages is a text of the assistant's, to go on with.

    Raises:
        InvalidRequestError: If it is not.
    """
    last = messages[-1]
    if last["role"] != "assistant" or not last["content"].strip() or last.get("tool_calls"):
        where = f"messages[{len(messages) - 1}]"
        raise InvalidRequestError(
            f"continue_final_message goes on with the last message, so {where} must be an"
            " assistant's, with content and without tool_calls. Send such a message, or leave"
            " continue_final_message out.",
            param="continue_final_message",
        )


def check_prompts(value: Any, context: int | None = None) -> tuple[TextPrompt | TokenPrompt, ...]:
    """Check prompts in one of the four forms of OpenAI's completions API.

    Args:
        value: A string, a list of strings, a list of token ids, or a list of lists of token ids.
        context: The most tokens that a prompt may have.

    Raises:
        InvalidRequestError: If it is none of them; the message names the entry at fault.
        ContextLengthError: If one of token ids is longer.
    """
    value = unpacked(value)
    if isinstance(value, str):
        return (TextPrompt(value),)
    if not isinstance(value, list | tuple) or not value:
        raise _refusal("prompt", FORMS, value, none="it is missing")
    if not isinstance(value[0], str | list | tuple):
        return (TokenPrompt(check_ids(value, "prompt", _ADVICE, context)),)
    if len(value) > MAX_COMPLETIONS:
        raise InvalidRequestError(
            f"prompt must hold at most {MAX_COMPLETIONS:,} prompts; got {len(value):,}. Send"
            " several requests.",
            param="prompt",
        )
    if isinstance(value[0], str):
        return tuple(_text(item, f"prompt[{i}]") for i, item in enumerate(value))
    named = [(f"prompt[{i}]", item) for i, item in enumerate(value)]
    return tuple(TokenPrompt(check_ids(item, name, _ADVICE, context), name) for name, item in named)


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
        raise _refusal(name, "a string", value, advice, none="it is missing")
    return (TextPrompt(value, name),)


def check_ids(
    value: Any, name: str, advice: str = "", context: int | None = None
) -> tuple[int, ...]:
    """Check token ids. Whether the vocabulary has them is for the model to say.

    Args:
        value: A list of integers from 0, at least one.
        name: What to call it in messages.
        advice: What else it may be, for the end of the message.
        context: The most that are of use; None takes any number.

    Raises:
        InvalidRequestError: If it is no such list; the message names the entry at fault.
        ContextLengthError: If there are more.
    """
    value = unpacked(value)
    if not isinstance(value, list | tuple) or not value:
        raise _refusal(name, "a list of token ids, at least one", value, advice)
    check_tokens(len(value), context, name)
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= MAX_ID:
        return tuple(value)  # millions of them in a tenth of the time
    ids: list[int] = []
    for i, item in enumerate(value):
        try:
            ids.append(_token_id(unpacked(item)))
        except ValueError as error:
            where = f"{name}[{i}]"
            raise _refusal(where, "a token id, an integer from 0", item, advice) from error
    return tuple(ids)


@allows(
    "an object with type 'content' and a content that is a string or a list of text parts, of at"
    f" most {MAX_PREDICTION_CHARACTERS:,} Unicode characters"
)
def prediction(value: Any) -> str:
    """Check a predicted output, and return its text."""
    if not isinstance(value, dict) or value.keys() != {"type", "content"}:
        raise ValueError
    text = value["content"]
    if isinstance(text, list | tuple):
        text = "".join(_part(part, f"prediction.content[{i}]") for i, part in enumerate(text))
    if not is_one(value["type"], "content") or not isinstance(text, str):
        raise ValueError
    if len(text) > MAX_PREDICTION_CHARACTERS:
        raise ValueError
    text.encode()
    return text


def _text(value: Any, where: str) -> TextPrompt:
    if not isinstance(value, str):
        raise _refusal(where, "a string, as prompt[0] is", value, _ADVICE)
    return TextPrompt(value, where)


def dumped(value: Any, levels: int = NESTED) -> Any:
    """Make a dict of a client's object, and of those in a list.

    Clients take back what they gave: OpenAI's objects are pydantic's, MLflow's are its own. What is
    nested deeper than so many levels is refused elsewhere.
    """
    if levels and isinstance(value, list | tuple):
        return [dumped(item, levels - 1) for item in value]
    for method in ("model_dump", "to_dict"):
        if not isinstance(value, dict | type) and callable(getattr(value, method, None)):
            value = getattr(value, method)()
    return dict(value) if isinstance(value, Mapping) else value


def _message(value: Any, where: str) -> dict[str, Any]:
    value = dumped(value)
    if not isinstance(value, dict):
        raise _refusal(where, "an object with role and content", value)
    value = {key: dumped(item) for key, item in value.items()}
    message = without_nulls(value, _NULLS_MEAN)
    role = message.get("role")
    if not is_one(role, *ROLES):
        kind = "it is missing" if role is None else "got something else"
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(ROLES)}; {kind}.", param=f"{where}.role"
        )
    if "function_call" in message:
        raise UnsupportedParameterError(
            f"{where}.function_call is not supported: OpenAI has replaced it. Send the call in"
            " tool_calls, as an object with type 'function', an id and the function.",
            param=f"{where}.function_call",
        )
    if role == "developer":
        message["role"] = "system"
    message["content"] = _content(message.get("content"), where, message)
    if "name" in message and not isinstance(message["name"], str):
        raise _refusal(f"{where}.name", "a string", message["name"])
    if "tool_calls" in message:
        _tool_calls(message["tool_calls"], f"{where}.tool_calls", role)
    return message


def _content(value: Any, where: str, message: dict[str, Any]) -> str:
    where = f"{where}.content"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(value))
    if value is None and is_one(message["role"], "assistant", "tool"):
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    raise _refusal(where, "a string or a list of text parts", value, none="it is missing")


def _part(value: Any, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if is_one(kind, *_OTHER_PARTS):
        raise UnsupportedParameterError(
            f"{where}: parts of type {kind} are not supported; this model reads only text.",
            param=where,
        )
    text = value.get(_TEXT_PARTS[kind]) if is_one(kind, *_TEXT_PARTS) else None
    if not isinstance(text, str):
        raise _refusal(where, "an object with type 'text' and a string as text", value)
    return text


def _tool_calls(value: Any, where: str, role: str) -> None:
    if role != "assistant":
        raise InvalidRequestError(f"{where} belongs only to assistant messages.", param=where)
    if not isinstance(value, list | tuple):
        raise _refusal(where, "a list", value)
    for i, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"{where}[{i}] must be an object with a function that has a name and arguments.",
                param=f"{where}[{i}]",
            )


def _refusal(
    where: str, allowed: str, value: Any, advice: str = "", none: str = "got null"
) -> InvalidRequestError:
    """Make the error of a value that is not what it may be.

    Args:
        where: The field, and the place in it.
        allowed: What may stand there.
        value: What came.
        advice: What to do, for the end of the message.
        none: What to say of None.
    """
    came = none if value is None else f"got {describe_kind(value)}"
    if isinstance(value, list | tuple) and not value:
        came = "got an empty list"
    return InvalidRequestError(f"{where} must be {allowed}; {came}.{advice}", param=where)
