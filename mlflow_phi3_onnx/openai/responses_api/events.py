"""From chat's completions to responses: whole objects, or typed events."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.openai.responses_api.output import Call, Message, TextTokens, Thought, new_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping

    from mlflow_phi3_onnx.openai.responses_api.history import History
    from mlflow_phi3_onnx.openai.responses_api.output import Event, Item
    from mlflow_phi3_onnx.openai.responses_api.request import ResponseRequest

__all__ = ["Events", "respond", "sse", "stream", "to_response"]

_CODES = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}


class Events:
    """Makes the events of a response of the chunks of a chat completion, with its usage.

    Args:
        request: The request.

    Attributes:
        response: The response as it is by now; empty before the first chunk.
    """

    def __init__(self, request: ResponseRequest) -> None:
        self.response: dict[str, Any] = {}
        self._request = request
        self._count = 0
        self._items: list[Item] = []
        self._done: list[dict[str, Any]] = []
        self._tokens = TextTokens()
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}

    def add(self, chunk: Mapping[str, Any]) -> list[Event]:
        """Take the next chunk and return the events that it makes."""
        events = [] if self.response else self._begin(chunk)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            self._tokens.add((choice.get("logprobs") or {}).get("content") or ())
            events += self._delta(choice["delta"])
            self._reason = choice["finish_reason"] or self._reason
        return self._numbered(events)

    def end(self) -> list[Event]:
        """Return the last events, once all chunks are there."""
        status = "incomplete" if self._reason == "length" else "completed"
        events = [] if self._items else self._open(Message(0))
        events += self._close(status)
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        self._settle(status, incomplete_details=cut, usage=_usage(self._usage))
        return self._numbered([*events, self._told(status)])

    def fail(self, error: GenAIError) -> list[Event]:
        """Return the last event, where an error has ended the chunks."""
        self._close("incomplete")
        told = error.to_openai()["error"]
        code = _CODES.get(told["type"], "server_error")
        self._settle("failed", error={"code": code, "message": told["message"]})
        return self._numbered([self._told("failed")])

    def _begin(self, chunk: Mapping[str, Any]) -> list[Event]:
        self.response = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": chunk["created"],
            "completed_at": None,
            "status": "in_progress",
            "model": chunk["model"],
            "output": [],
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._request.echoed,
        }
        return [self._told("created"), self._told("in_progress")]

    def _delta(self, delta: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        if thought := delta.get("reasoning_content"):
            self._tokens.take(thought)
            events += [*self._at(Thought), *self._items[-1].add(thought)]
        if text := delta.get("content"):
            logprobs = self._tokens.take(text)
            events += [*self._at(Message), *self._items[-1].add(text, logprobs=logprobs)]
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "id" in call:
                begun = Call(len(self._items), call["id"], function["name"])
                events += [*self._close("completed"), *self._open(begun)]
            if arguments := function["arguments"]:
                self._tokens.take(arguments)
                events += self._items[-1].add(arguments)
        return events

    def _at(self, kind: type[Thought | Message]) -> list[Event]:
        """Be in an item of a kind: the last one, or a new one."""
        if self._items and isinstance(self._items[-1], kind):
            return []
        return [*self._close("completed"), *self._open(kind(len(self._items)))]

    def _open(self, item: Item) -> list[Event]:
        self._items.append(item)
        return item.begin()

    def _close(self, status: str) -> list[Event]:
        """End the last item, if there is one."""
        if not self._items:
            return []
        self._done.append(self._items[-1].whole(status))
        return self._items[-1].end(status)

    def _settle(self, status: str, **more: Any) -> None:
        ended = int(time.time()) if status == "completed" else None
        told = {"status": status, "completed_at": ended, "output": self._done, **more}
        self.response = {**self.response, **told}

    def _told(self, name: str) -> Event:
        return {"type": f"response.{name}", "response": self.response}

    def _numbered(self, events: list[Event]) -> list[Event]:
        first = self._count
        self._count += len(events)
        return [{**event, "sequence_number": first + i} for i, event in enumerate(events)]


def to_response(completion: Mapping[str, Any], request: ResponseRequest) -> dict[str, Any]:
    """Make a whole response of a whole chat completion."""
    (choice,) = completion["choices"]
    message = choice["message"]
    calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls") or ())]
    delta = {**message, "tool_calls": calls}
    events = Events(request)
    events.add({**completion, "choices": [{**choice, "delta": delta}]})
    events.end()
    return events.response


async def respond(
    request: ResponseRequest, completion: Awaitable[Mapping[str, Any]], history: History
) -> dict[str, Any]:
    """Await the completion of a request's chat, and make a response of it that is kept.

    Args:
        request: The request.
        completion: Chat's answer to ``request.chat``.
        history: Where the conversation is kept.

    Raises:
        GenAIError: What the completion raises, in the names of this API.
    """
    with request.named():
        response = to_response(await completion, request)
    request.keep(response, history)
    return response


async def stream(
    request: ResponseRequest,
    chunks: AsyncGenerator[Mapping[str, Any]],
    history: History,
) -> AsyncGenerator[Event]:
    """Make events of the chunks of a request's chat, and keep the conversation at their end.

    An error before the first chunk is raised, so that a server can answer with its status; a later
    one is an event. Closing this closes the chunks.

    Args:
        request: The request.
        chunks: Chat's answer to ``request.chat``, with its usage.
        history: Where the conversation is kept.

    Raises:
        GenAIError: What comes instead of the first chunk, in the names of this API.
    """
    events = Events(request)
    async with aclosing(chunks):
        try:
            with request.named():
                async for chunk in chunks:
                    for event in events.add(chunk):
                        yield event
        except GenAIError as error:
            if not events.response:
                raise
            for event in events.fail(error):
                yield event
            return
    last = events.end()
    request.keep(events.response, history)
    for event in last:
        yield event


def sse(event: Event) -> str:
    """Write an event as one of a stream of server-sent events."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"


def _usage(counts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write chat's usage as this API does."""
    if not counts:
        return None
    cached = counts.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    reasoning = counts.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": counts["total_tokens"],
    }
