"""From the items of a conversation to chat's messages.

A turn of the assistant's is one message in chat, and several items here: reasoning, text and calls.
Items go into the message before them, as long as that waits for results of calls or has no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind, is_one
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.responses_api.fields import members

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Messages", "Place", "input_items"]

ROLES = ("system", "developer", "user", "assistant")

_OF_MESSAGE = ("type", "id", "status", "role", "content")
_OF_CALL = ("type", "id", "status", "call_id", "name", "arguments")
_OF_RESULT = ("type", "id", "status", "call_id", "name", "output")
_OF_THOUGHT = ("type", "id", "status", "summary", "content")
_OF_PART = ("type", "text", "refusal", "annotations", "logprobs")
# What asks for nothing, so that it may be given.
_DIRECT = {"caller": {"type": "direct"}, "async": False}


@dataclass
class Place:
    """Where a message of chat's stands in a request for a response.

    Attributes:
        item: The place of its first item.
        content: The place of its text.
    """

    item: str
    content: str


def input_items(value: Any) -> list[Any]:
    """Return the items of an input: a text is one message of the user's.

    Raises:
        InvalidRequestError: If it is no text, and no list of items.
    """
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list | tuple) or not value:
        came = "it is missing" if value is None else f"got {describe_kind(value)}"
        if isinstance(value, list | tuple):
            came = "got an empty list"
        raise InvalidRequestError(
            f"input must be a string or a list of items; {came}.", param="input"
        )
    return list(value)


class Messages:
    """Chat's messages, made of items one after the other.

    Attributes:
        places: Where each of them stands.
    """

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._messages: list[dict[str, Any]] = []
        self._thoughts: list[list[str]] = []
        self._called: set[str] = set()

    def instruct(self, text: str) -> None:
        """Add instructions."""
        self._append(Place("instructions", "instructions"), role="system", content=text)

    def add(self, item: Any, where: str) -> dict[str, Any]:
        """Add an item, and return what is to be kept of it: what it says, in texts.

        Args:
            item: The item.
            where: Its place in the request.

        Raises:
            InvalidRequestError: If it is not what an item may be.
            UnsupportedParameterError: If it, or a member of it, is not supported.
        """
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if is_one(kind, "message", None):
            return self._message(members(item, where, _OF_MESSAGE), where)
        if is_one(kind, "function_call"):
            return self._call(members(item, where, _OF_CALL, _DIRECT), where)
        if is_one(kind, "function_call_output"):
            return self._result(members(item, where, _OF_RESULT, _DIRECT), where)
        if is_one(kind, "reasoning"):
            return self._thought(members(item, where, _OF_THOUGHT), where)
        advice = " Send the item itself." if is_one(kind, "item_reference") else ""
        raise UnsupportedParameterError(
            f"{where}.type must be one of message, function_call, function_call_output, reasoning;"
            f" got another one.{advice}",
            param=f"{where}.type",
        )

    def whole(self) -> list[dict[str, Any]]:
        """Return the messages."""
        return [
            {**message, "reasoning_content": "".join(thoughts)} if thoughts else message
            for message, thoughts in zip(self._messages, self._thoughts, strict=True)
        ]

    def _message(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        role = item.get("role")
        if not is_one(role, *ROLES):
            came = "it is missing" if role is None else "got something else"
            raise InvalidRequestError(
                f"{where}.role must be one of {', '.join(ROLES)}; {came}.", param=f"{where}.role"
            )
        content = _checked_parts(item.get("content"), f"{where}.content")
        if role != "assistant":
            self._append(_place(where), role=role, content=content)
        else:
            turn = self._turn(where, text=True)
            turn["content"] = turn["content"] or []
            turn["content"] += _parts(content)
        self.places[-1].content = _place(where).content
        return {"role": role, "content": content}

    def _call(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        name, arguments, call_id = (
            _string(item, member, where) for member in ("name", "arguments", "call_id")
        )
        function = {"name": name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        self._turn(where).setdefault("tool_calls", []).append(call)
        self._called.add(call_id)
        return {"type": "function_call", "call_id": call_id, **function}

    def _result(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        call_id = _string(item, "call_id", where)
        if call_id not in self._called:
            raise InvalidRequestError(
                f"{where}.call_id must be that of a function_call before it; got another one. Send"
                " the call too, or previous_response_id.",
                param=f"{where}.call_id",
            )
        content = _checked_parts(item.get("output"), f"{where}.output")
        named = {"name": item["name"]} if "name" in item else {}
        place = _place(where, "output")
        self._append(place, role="tool", tool_call_id=call_id, content=content, **named)
        return {"type": "function_call_output", "call_id": call_id, "output": content, **named}

    def _thought(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        content, summary = item.get("content", ()), item.get("summary", ())
        for member, value in (("content", content), ("summary", summary)):
            if not isinstance(value, list | tuple):
                raise _wrong(f"{where}.{member}", "a list of parts", value)
        if summary and not content:
            raise UnsupportedParameterError(
                f"{where}.summary: a summary is no thought of this model's, which stand in content."
                " Leave the item out.",
                param=f"{where}.summary",
            )
        thought = ""
        for i, part in enumerate(content):
            at = f"{where}.content[{i}]"
            given = members(part, at, ("type", "text"))
            if not is_one(given.get("type"), "reasoning_text", "text"):
                raise InvalidRequestError(
                    f"{at}.type must be reasoning_text; got something else.", param=f"{at}.type"
                )
            thought += _string(given, "text", at)
        if thought:
            self._turn(where, text=True)
            self._thoughts[-1].append(thought)
        return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": thought}]}

    def _turn(self, where: str, *, text: bool = False) -> dict[str, Any]:
        """Return the assistant's turn that goes on, or a new one."""
        last = self._messages[-1] if self._messages else {}
        goes_on = last.get("role") == "assistant"
        if not goes_on or (text and last["content"] and "tool_calls" not in last):
            self._append(_place(where), role="assistant", content="")
        return self._messages[-1]

    def _append(self, place: Place, **message: Any) -> None:
        self._messages.append(message)
        self._thoughts.append([])
        self.places.append(place)


def _place(where: str, member: str = "content") -> Place:
    """Make the place of an item; one that is not of a list has no places within."""
    return Place(where, f"{where}.{member}" if where.endswith("]") else where)


_TEXTS = ("text", "input_text", "output_text", "refusal")


def _checked_parts(value: Any, where: str) -> Any:
    """Check that parts of text have only known members, and return what they say.

    Whether they are texts is for chat to check.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise _wrong(where, "a string or a list of text parts", value)
    return [_said(part, f"{where}[{i}]") for i, part in enumerate(value)]


def _said(part: Any, where: str) -> Any:
    if not isinstance(part, dict) or not is_one(part.get("type"), *_TEXTS):
        return part
    given = members(part, where, _OF_PART)
    return {name: given[name] for name in ("type", "text", "refusal") if name in given}


def _parts(content: Any) -> Sequence[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _string(item: dict[str, Any], member: str, where: str) -> str:
    value = item.get(member)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{member}", "a string", value)
    return value


def _wrong(where: str, allowed: str, value: Any) -> InvalidRequestError:
    came = "it is missing" if value is None else f"got {describe_kind(value)}"
    return InvalidRequestError(f"{where} must be {allowed}; {came}.", param=where)
