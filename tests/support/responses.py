"""OpenAI's Responses API as the types of its own client have it."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from mlflow_phi3_onnx.openai.responses_api.events import Events, to_response
from mlflow_phi3_onnx.openai.responses_api.request import read_request

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from fastapi import FastAPI

    from mlflow_phi3_onnx import GenAIModel
    from mlflow_phi3_onnx.openai.responses_api.history import History

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

# What OpenAI's API has, and some versions of its client's types have not.
BESIDE = {"store", "bytes", "name", "cache_write_tokens", "completed_at"}


def check_known(told: BaseModel) -> None:
    """Check that a type knows every field of what it was made of."""
    assert set(told.model_extra or ()) <= BESIDE
    for _, value in told:
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                check_known(inner)


def valid_response(data: dict[str, Any]) -> dict[str, Any]:
    """Check a whole response against the client's types."""
    check_known(Response.model_validate(data, strict=True))
    return data


def valid_events(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Check the events of a response, and return it; its deltas make what it holds."""
    numbered = list(events)
    assert [event["sequence_number"] for event in numbered] == list(range(len(numbered)))
    for event in numbered:
        told = EVENTS.validate_python(event, strict=True)
        assert told.type == event["type"]
        check_known(told)
    types = [event["type"].removeprefix("response.") for event in numbered]
    assert types[:2] == ["created", "in_progress"]
    assert all(event["response"]["output"] == [] for event in numbered[:2])
    response = numbered[-1]["response"]
    assert types[-1] == response["status"]
    assert types.count("output_item.added") == len(response["output"])
    texts: defaultdict[int, str] = defaultdict(str)
    logprobs: defaultdict[int, list[Any]] = defaultdict(list)
    for event in numbered:
        if event["type"].endswith(".delta"):
            assert event["delta"]
            texts[event["output_index"]] += event["delta"]
            logprobs[event["output_index"]] += event.get("logprobs", [])
    for index, item in enumerate(response["output"]):
        own = [event for event in numbered if event.get("output_index") == index]
        ids = {event.get("item_id") or event["item"]["id"] for event in own}
        assert ids == {item["id"]}
        assert text_of(item) == texts[index]
        if response["status"] == "failed":
            continue
        assert own[-1]["item"] == item
        done = next(event for event in own if event["type"].split(".")[-1] == "done")
        assert done.get("text", done.get("arguments")) == texts[index]
        if item["type"] == "message":
            assert done["logprobs"] == item["content"][0]["logprobs"] == logprobs[index]
    return valid_response(response)


def text_of(item: Mapping[str, Any]) -> str:
    """Return an item's text or arguments."""
    if item["type"] == "function_call":
        return item["arguments"]
    (part,) = item["content"]
    return part["text"]


def ask(model: GenAIModel, history: History, door: str, **body: Any) -> dict[str, Any]:
    """Return a model's response, as a whole or at the end of a stream."""
    request = read_request(body, history)
    with request.named():
        if door == "whole":
            response = valid_response(to_response(model.chat(**request.chat), request))
        else:
            events = Events(request)
            made = [event for c in model.stream_chat(**request.chat) for event in events.add(c)]
            response = valid_events([*made, *events.end()])
    request.keep(response, history)
    return response


@contextmanager
def running(served: FastAPI) -> Generator[str]:
    """Run an app in a thread; yields the URL of its API."""
    config = uvicorn.Config(served, port=0, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        (listening,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
