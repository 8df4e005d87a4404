"""What an operator's log says: how a request went, and never what it said."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel, GenerationTimeoutError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "CANARY7f3a"
CHAT = [{"role": "user", "content": f"{CANARY}: what is the capital of Spain?"}]
WHERE = "mlflow_phi3_onnx"


@pytest.fixture
def model(demo: Path) -> Iterator[GenAIModel]:
    """A model of its own: what others asked may be cached."""
    with GenAIModel(demo) as made:
        yield made


def test_a_request_is_told_at_debug(model: GenAIModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, WHERE)
    model.chat(CHAT, max_tokens=3)
    assert caplog.messages == []
    caplog.set_level(logging.DEBUG, WHERE)
    answer = model.chat(CHAT, max_tokens=3)
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    (message,) = caplog.messages
    assert re.sub(r"\d+\.\d{3} s", "0 s", message) == (
        f"Answered {answer['id']} in 0 s: {usage['prompt_tokens']} prompt tokens ({cached} cached),"
        " 3 completion tokens, length."
    )
    caplog.clear()
    answer = model.complete(["a", "b"], n=2, max_tokens=2)
    assert (
        f": {answer['usage']['prompt_tokens']} prompt tokens (0 cached),"
        f" {answer['usage']['completion_tokens']} completion tokens" in caplog.messages[0]
    )


def test_a_stream_is_told_wherever_it_ends(
    model: GenAIModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, WHERE)
    list(model.stream_chat(CHAT, max_tokens=3))
    assert re.fullmatch(
        r"A stream of 1 completions ended after \d+\.\d{3} s and 3 completion tokens\.",
        caplog.messages[-1],
    )
    stream = model.stream_complete("Once", max_tokens=500, min_tokens=500)
    next(stream)
    next(stream)
    stream.close()
    assert re.search(r"and [1-9]\d* completion tokens\.$", caplog.messages[-1])


async def _refused(model: GenAIModel, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        await model.arun("llm/v1/chat", [fields])
    with pytest.raises(InvalidRequestError):
        await anext(model.arun_stream("llm/v1/chat", fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": CHAT, "top_p": CANARY}, "InvalidRequestError, top_p"),
        ({"messages": CANARY}, "InvalidRequestError, messages"),
        ({"messages": CHAT, CANARY: 1}, "UnsupportedParameterError"),
        ({"messages": CHAT, "max_tokens": 10**6}, "ContextLengthError, max_tokens"),
    ],
)
def test_a_refusal_is_told_by_its_class_and_field(
    model: GenAIModel, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], says: str
) -> None:
    caplog.set_level(logging.DEBUG, WHERE)
    with pytest.raises(InvalidRequestError):
        model.run("llm/v1/chat", [fields])
    with pytest.raises(InvalidRequestError):
        model.run_stream("llm/v1/chat", fields)
    asyncio.run(_refused(model, fields))
    refusals = [message for message in caplog.messages if "Refused" in message]
    assert refusals == [f"Refused a request: {says}."] * 4
    assert CANARY not in caplog.text


def test_a_failure_is_told(model: GenAIModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, WHERE)
    with pytest.raises(GenerationTimeoutError):
        model.chat(CHAT, max_tokens=3000, min_tokens=3000, timeout=0.05)
    (message,) = caplog.messages
    assert re.fullmatch(r"A request failed after \d+\.\d{3} s: GenerationTimeoutError\.", message)
