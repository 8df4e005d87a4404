"""Checks of a conversation's messages."""

from __future__ import annotations

from typing import Any

from mlflow_phi3_onnx.core.checks import allows
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.fields import refusal

__all__ = ["check_messages", "prediction"]

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 10_000
MAX_PREDICTION_CHARACTERS = 1 << 20
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


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
    if not isinstance(value, list | tuple):
        raise refusal("messages", "a list of objects with role and content", value)
    if not value:
        raise InvalidRequestError("messages must hold at least one message.", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"messages must hold at most {MAX_MESSAGES:,} messages; got {len(value):,}.",
            param="messages",
        )
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


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
    if value["type"] != "content" or not isinstance(text, str):
        raise ValueError
    if len(text) > MAX_PREDICTION_CHARACTERS:
        raise ValueError
    text.encode()
    return text


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refusal(where, "an object with role and content", value)
    message = {key: item for key, item in value.items() if item is not None}
    role = message.get("role")
    if role not in ROLES:
        kind = "it is missing" if role is None else "got something else"
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(ROLES)}; {kind}.", param=f"{where}.role"
        )
    if role == "developer":
        message["role"] = "system"
    message["content"] = _content(message.get("content"), where, message)
    if "name" in message and not isinstance(message["name"], str):
        raise refusal(f"{where}.name", "a string", message["name"])
    if "tool_calls" in message:
        _tool_calls(message["tool_calls"], f"{where}.tool_calls", role)
    return message


def _content(value: Any, where: str, message: dict[str, Any]) -> str:
    where = f"{where}.content"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(value))
    if value is None and message["role"] == "assistant" and message.get("tool_calls"):
        return ""
    raise refusal(where, "a string or a list of text parts", value, none="it is missing")


def _part(value: Any, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("image_url", "input_audio", "file", "input_image", "input_file"):
        raise UnsupportedParameterError(
            f"{where}: parts of type {kind} are not supported; this model reads only text.",
            param=where,
        )
    text = value.get(_TEXT_PARTS[kind]) if isinstance(kind, str) and kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise refusal(where, "an object with type 'text' and a string as text", value)
    return text


def _tool_calls(value: Any, where: str, role: str) -> None:
    if role != "assistant":
        raise InvalidRequestError(f"{where} belongs only to assistant messages.", param=where)
    if not isinstance(value, list | tuple):
        raise refusal(where, "a list", value)
    for i, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"{where}[{i}] must be an object with a function that has a name and arguments.",
                param=f"{where}[{i}]",
            )
