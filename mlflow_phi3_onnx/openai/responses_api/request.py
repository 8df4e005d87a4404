"""From the body of a request for a response to the fields of the same request in chat's API."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.options import check_mapping, read
from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError
from mlflow_phi3_onnx.openai.amount import check_amount
from mlflow_phi3_onnx.openai.prompts import check_messages
from mlflow_phi3_onnx.openai.responses_api.fields import FIELDS, GROUPS, LOGPROBS, SAME_IN_CHAT
from mlflow_phi3_onnx.openai.responses_api.items import Messages, Place, input_items

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from mlflow_phi3_onnx.openai.responses_api.history import History

__all__ = ["ResponseRequest", "read_request"]

_HERE = {
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
}
"""Chat's names of fields that have another one here."""

_MESSAGE = re.compile(r"\bmessages\[(\d+)\](\.content)?")
_FIELD = re.compile(rf"^messages\b|\b({'|'.join(name for name in _HERE if '_' in name)})\b")


@dataclass(frozen=True)
class ResponseRequest:
    """A checked request for a response.

    Attributes:
        chat: The fields of the same request in chat's API.
        places: Where each of its messages stands in this request.
        before: The conversation that it goes on from, as its history keeps it.
        asked: The items of its input, as they are kept.
        echoed: The fields that the response repeats.
        stream: Whether the response is wanted as events.
        store: Whether the conversation is to be kept.
    """

    chat: dict[str, Any]
    places: Sequence[Place]
    before: tuple[bytes, ...]
    asked: Sequence[Any]
    echoed: dict[str, Any]
    stream: bool
    store: bool

    @contextmanager
    def named(self) -> Generator[None]:
        """Give the errors of chat, which are raised in here, the names and places of this API."""
        try:
            yield
        except GenAIError as error:
            message, param = self._here(error.message), error.param and self._here(error.param)
            if (message, param) == (error.message, error.param):
                raise
            raise type(error)(message, param=param) from error

    def keep(self, response: dict[str, Any], history: History) -> None:
        """Keep the conversation of a whole response, which then says whether it is kept.

        Args:
            response: The response.
            history: Where to, unless the request says not to.
        """
        if not self.store:
            return
        said = Messages()
        turn = [*self.asked, *(said.add(item, "output") for item in response["output"])]
        written = json.dumps(turn, separators=(",", ":")).encode()
        response["store"] = history.keep(response["id"], (*self.before, written))

    def _here(self, text: str) -> str:
        def place(found: re.Match[str]) -> str:
            at = self.places[int(found[1])]
            return at.content if found[2] else at.item

        return _FIELD.sub(lambda found: _HERE[found[0]], _MESSAGE.sub(place, text))


def read_request(body: Mapping[str, Any], history: History) -> ResponseRequest:
    """Check a request's body, and settle what it means in chat.

    Args:
        body: The fields.
        history: The conversations of previous responses.

    Raises:
        InvalidRequestError: If a field is not what it may be.
        UnsupportedParameterError: If a field is unknown or not supported.
        ResponseNotFoundError: If the previous response is not kept.
    """
    given = read(FIELDS, _flat(body), "a field of a request for a response", known=("input",))
    if given.get("top_logprobs") and LOGPROBS not in given.get("include", ()):
        raise InvalidRequestError(
            f"top_logprobs needs include to hold {LOGPROBS}.", param="top_logprobs"
        )
    previous = given.get("previous_response_id")
    before = () if previous is None else history.turns(previous)
    value = body.get("input")
    check_amount(value, "input")
    messages = Messages()
    if "instructions" in given:
        messages.instruct(given["instructions"])
    for turn in before:
        for item in json.loads(turn):
            messages.add(item, "previous_response_id")
    asked = [
        messages.add(item, "input" if isinstance(value, str) else f"input[{i}]")
        for i, item in enumerate(input_items(value))
    ]
    request = ResponseRequest(
        chat=_chat(given, body),
        places=messages.places,
        before=before,
        asked=asked,
        echoed=_echoed(given, body),
        stream=given.get("stream", False),
        store=given.get("store", True),
    )
    with request.named():
        checked = check_messages(messages.whole())
    return replace(request, chat={"messages": list(checked), **request.chat})


def _flat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Name the fields of objects as the table does: ``text.format``."""
    flat: dict[str, Any] = {}
    for name, value in check_mapping(body, "request").items():
        if name not in GROUPS or value is None:
            flat[name] = value
        elif isinstance(value, dict):
            flat.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            raise InvalidRequestError(
                f"{name} must be an object; got {describe_kind(value)}.", param=name
            )
    return flat


def _chat(given: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Write checked fields as chat has them; those that are chat's own stay as they came."""
    chat = {name: body[name] for name in SAME_IN_CHAT if name in given}
    chat |= {"n": 1, "stream_options": {"include_usage": True}}
    if "tool_choice" in given:
        chat["tool_choice"] = given["tool_choice"]
    if "tools" in given:
        chat["tools"] = [
            {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
            for tool in given["tools"]
        ]
    if "text.format" in given:
        form = given["text.format"]
        named = {name: value for name, value in form.items() if name != "type"}
        inner = {"json_schema": named} if named else {}
        chat["response_format"] = {"type": form["type"], **inner}
    if "reasoning.effort" in given:
        chat["reasoning_effort"] = given["reasoning.effort"]
    if "max_output_tokens" in given:
        chat["max_completion_tokens"] = given["max_output_tokens"]
    if LOGPROBS in given.get("include", ()):
        chat |= {"logprobs": True, "top_logprobs": given.get("top_logprobs", 0)}
    return chat


_REPEATED = (
    *("instructions", "max_output_tokens", "previous_response_id", "prompt_cache_key"),
    *("safety_identifier", "temperature", "top_p", "user"),
)


def _echoed(given: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what of a request its response repeats; null is what the model settles."""
    return {
        **{name: given.get(name) for name in _REPEATED},
        "background": False,
        "max_tool_calls": None,
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "reasoning": {"effort": given.get("reasoning.effort"), "summary": None},
        "service_tier": "default",
        "store": given.get("store", True),
        "text": {"format": given.get("text.format", {"type": "text"})},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [
            {"description": None, "parameters": None, "strict": False, **tool}
            for tool in given.get("tools", ())
        ],
        "top_logprobs": given.get("top_logprobs", 0),
        "truncation": "disabled",
    }
