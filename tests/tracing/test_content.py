"""Without content, nothing that a user wrote or a model answered is in a trace or the database."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from tests.support.doors import ONE_LOOP
from tests.support.thinking import THOUGHT, thinker
from tests.support.tool_cases import TOOLS, WEATHER, check_calls, closed, tool
from tests.support.traces import all_traces, main_span, parts

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "CANARY7f3a"
ASKED = f"{CANARY} Who are you?"
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": ASKED}],
    "max_tokens": 5,
    "temperature": 0.5,
    "stop": [CANARY],
    "user": CANARY,
    "metadata": {CANARY: CANARY},
    "tools": [tool(CANARY, closed(**{CANARY: {"type": "string", "maxLength": 5}}))],
    "tool_choice": {"type": "function", "function": {"name": CANARY}},
}
REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    ("llm/v1/chat", CHAT),
    ("llm/v1/chat", {"messages": CHAT["messages"], "choice": [CANARY], "max_tokens": 40}),
    ("llm/v1/chat", {**CHAT, CANARY: 1}),
    ("llm/v1/chat", {**CHAT, "top_p": CANARY}),
    ("llm/v1/chat", {"messages": CANARY}),
    ("llm/v1/chat", {"messages": [{"role": CANARY, "content": CANARY}]}),
    ("llm/v1/chat", {"messages": CHAT["messages"], "regex": f"{CANARY}("}),
    ("llm/v1/chat", {"messages": CHAT["messages"], "min_tokens": 3000, "timeout": 0.05}),
    ("llm/v1/completions", {"prompt": [CANARY, ASKED], "echo": True, "max_tokens": 3}),
    ("text-generation", {"prompt": ASKED, "max_tokens": 3}),
    ("text-generation", {"prompt": [ASKED]}),
]


def ask_everything(model: GenAIModel) -> None:
    async def aask(task: Any, fields: dict[str, Any]) -> None:
        with contextlib.suppress(mlflow_phi3_onnx.errors.GenAIError):
            await model.arun(task, [fields])
        with contextlib.suppress(mlflow_phi3_onnx.errors.GenAIError):
            chunks = model.arun_stream(task, fields)
            await anext(chunks)
            await chunks.aclose()

    for task, fields in REQUESTS:
        with contextlib.suppress(mlflow_phi3_onnx.errors.GenAIError):
            model.run(task, [fields])
        with contextlib.suppress(mlflow_phi3_onnx.errors.GenAIError):
            list(model.run_stream(task, fields))
        asyncio.run(aask(task, fields))


def everything_stored(uri: str) -> bytes:
    """What the store holds: its database, and all files beside it."""
    folder = Path(uri.removeprefix("sqlite:///")).parent
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@ONE_LOOP
def test_without_content_nothing_of_it_is_stored(model: GenAIModel, traced: str) -> None:
    mlflow_phi3_onnx.autolog(log_content=False)
    ask_everything(model)
    traces = all_traces()
    assert len(traces) == 4 * len(REQUESTS)
    assert CANARY not in "".join(trace.to_json() for trace in traces)
    assert CANARY.encode() not in everything_stored(traced)
    span = main_span(traces[0])
    assert (span.inputs, span.outputs) == ({}, {})
    assert span.attributes["temperature"] == 0.5
    assert span.attributes["mlflow.chat.tokenUsage"]["output_tokens"] == 5
    assert {trace.info.request_preview for trace in traces} == {"{}"}
    types = [main_span(trace).attributes.get("error.type") for trace in traces]
    assert {"InvalidRequestError", "GenerationTimeoutError", None} < set(types)
    failed = [main_span(trace) for trace in traces if trace.info.state == "ERROR"]
    assert all(span.status.description == span.attributes["error.type"] for span in failed)


@ONE_LOOP
def test_with_content_it_is_there(model: GenAIModel, traced: str) -> None:
    """Or the test above would see nothing."""
    ask_everything(model)
    traces = all_traces()
    assert all(CANARY in trace.to_json() for trace in traces)
    assert CANARY.encode() in everything_stored(traced)
    tools = main_span(traces[0]).attributes["mlflow.chat.tools"]
    assert [one["function"]["name"] for one in tools] == [CANARY]
    assert main_span(traces[0]).attributes["stop"] == [CANARY]


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_what_cannot_be_encoded_loses_no_trace(model: GenAIModel) -> None:
    asked = [{"role": "user", "content": "\ud800 Who are you?"}]
    with pytest.raises(InvalidRequestError, match="messages holds a lone surrogate"):
        model.chat(asked, max_tokens=2)
    with pytest.raises(UnsupportedParameterError):
        model.chat(asked, **{"\ud800": 1})
    text, name = map(main_span, all_traces())
    assert text.inputs["messages"] == [{"role": "user", "content": "? Who are you?"}]
    assert name.inputs["?"] == 1
    assert "? is not" in name.status.description


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_tool_calls(model: GenAIModel) -> None:
    answer = model.chat(WEATHER, tools=TOOLS[:1], max_tokens=60)
    check_calls(answer["choices"][0])
    list(model.stream_chat(WEATHER, tools=TOOLS[:1], max_tokens=60))
    whole, stream = all_traces()
    for trace in (whole, stream):
        span = main_span(trace)
        (choice,) = span.outputs["choices"]
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        (expected,) = answer["choices"][0]["message"]["tool_calls"]
        assert calls == [expected["function"]]
        assert span.attributes["onnx_genai.finish_reasons"] == ["tool_calls"]
        assert span.attributes["mlflow.chat.tools"][0]["function"]["name"] == "get_weather"
    names = [part.name for part in parts(whole, main_span(whole))]
    assert names[-2:] == ["decode", "tool parsing"]
    assert parts(stream, main_span(stream))[-1].name == "decode"


@pytest.fixture
def thinking(demo: Path, tmp_path: Path) -> Iterator[GenAIModel]:
    with GenAIModel(thinker(demo, tmp_path / "model")) as model:
        yield model


@pytest.mark.usefixtures("traced")
def test_reasoning(thinking: GenAIModel) -> None:
    answer = thinking.chat(WEATHER, max_tokens=60)
    list(thinking.stream_chat(WEATHER, max_tokens=60))
    for trace in all_traces():
        span = main_span(trace)
        assert THOUGHT in span.outputs["choices"][0]["message"]["reasoning_content"]
        counted = span.attributes["onnx_genai.usage"]["completion_tokens_details"]
        assert counted == answer["usage"]["completion_tokens_details"]
        assert counted["reasoning_tokens"] > 5
