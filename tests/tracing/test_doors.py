"""Every call of a model becomes a trace, whichever way it is called."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.genai
import mlflow.tracing
import pandas as pd
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import ContextLengthError, GenAIModel, GenerationTimeoutError
from tests.support.doors import ONE_LOOP
from tests.support.traces import all_traces, main_span, only_trace, parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CAPITAL = [{"role": "user", "content": "What is the capital of Spain?"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "llm/v1/chat": {"messages": CAPITAL, "max_tokens": 20},
    "llm/v1/completions": {"prompt": ["The capital of Spain is", "Once"], "n": 2, "max_tokens": 4},
    "text-generation": {"prompt": "The capital of Spain is", "max_tokens": 4},
}
USAGE = "mlflow.chat.tokenUsage"


async def _listed(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


WAYS: dict[str, Callable[[GenAIModel, Any, dict[str, Any]], Any]] = {
    "whole": lambda model, task, fields: model.run(task, [fields]),
    "stream": lambda model, task, fields: list(model.run_stream(task, fields)),
    "awaited": lambda model, task, fields: asyncio.run(model.arun(task, [fields])),
    "awaited stream": lambda model, task, fields: asyncio.run(
        _listed(model.arun_stream(task, fields))
    ),
}


def same(response: Any) -> Any:
    """What two answers to a request have in common, whatever was cached."""
    if isinstance(response, str):
        return response
    usage = {k: v for k, v in response["usage"].items() if k != "prompt_tokens_details"}
    return {**response, "id": "", "created": 0, "usage": usage}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("task", REQUESTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_call_is_a_trace(model: GenAIModel, task: Any, way: str) -> None:
    fields = REQUESTS[task]
    came = WAYS[way](model, task, fields)
    trace = only_trace()
    assert trace.info.state == "OK"
    span = main_span(trace)
    assert span.parent_id is None
    assert span.span_type == ("CHAT_MODEL" if task == "llm/v1/chat" else "LLM")
    assert span.inputs == fields
    mlflow_phi3_onnx.autolog(disable=True)
    (expected,) = model.run(task, [fields])
    assert same(span.outputs) == same(expected)
    if "stream" in way:
        events = [event.attributes["mlflow.chunk.value"] for event in span.events]
        assert len(events) == len(came)
        assert [event.name for event in span.events][:2] == [
            "mlflow.chunk.item.0",
            "mlflow.chunk.item.1",
        ]
        if task != "text-generation":
            assert {chunk["id"] for chunk in came} == {span.outputs["id"]}
    else:
        assert came == [span.outputs]
        assert span.events == []
    sequences = 4 if task == "llm/v1/completions" else 1
    first = "template and tokenization" if task == "llm/v1/chat" else "tokenization"
    names = [part.name for part in parts(trace, span)]
    assert sorted(names) == sorted([first, *["queue", "prefill", "decode"] * sequences])
    assert span.attributes["mlflow.llm.model"] == "phi3"
    assert span.attributes["mlflow.llm.provider"] == "onnxruntime-genai"
    assert span.attributes["mlflow.message.format"] == "openai"
    assert set(span.attributes["mlflow.llm.cost"].values()) == {0.0}
    assert span.attributes["max_tokens"] == fields["max_tokens"]
    tokens = span.attributes[USAGE]
    if isinstance(expected, dict):
        assert tokens["input_tokens"] == expected["usage"]["prompt_tokens"]
        assert tokens["output_tokens"] == expected["usage"]["completion_tokens"]
        reasons = [choice["finish_reason"] for choice in expected["choices"]]
        assert span.attributes["onnx_genai.finish_reasons"] == reasons
    assert tokens["total_tokens"] == tokens["input_tokens"] + tokens["output_tokens"] > 5
    assert trace.info.token_usage == {
        name: tokens[name] for name in ("input_tokens", "output_tokens", "total_tokens")
    } | {name: tokens[name] for name in tokens if "cache" in name}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("stop", [{}, {"stop": [" Madrid"]}])
def test_times_add_up(model: GenAIModel, stop: dict[str, Any]) -> None:
    model.chat(CAPITAL, max_tokens=20, **stop)
    list(model.stream_chat(CAPITAL, max_tokens=20, **stop))
    for trace in all_traces():
        span = main_span(trace)
        before, queue, prefill, decode = parts(trace, span)
        assert (before.name, queue.name) == ("template and tokenization", "queue")
        assert (prefill.name, decode.name) == ("prefill", "decode")
        assert queue.end_time_ns == pytest.approx(prefill.start_time_ns, abs=10)
        assert prefill.end_time_ns == pytest.approx(decode.start_time_ns, abs=10)
        told = span.attributes
        for part in (queue, prefill, decode):
            assert part.end_time_ns
            seconds = (part.end_time_ns - part.start_time_ns) / 1e9
            assert seconds == pytest.approx(told[f"onnx_genai.{part.name}_seconds"], abs=1e-6)
            assert seconds > 0
        assert before.end_time_ns
        engine = told["onnx_genai.queue_seconds"] + told["onnx_genai.prefill_seconds"]
        until_engine = told["onnx_genai.time_to_first_token_seconds"] - engine
        # What tracing itself takes until the engine is asked is left out.
        encoded = (before.end_time_ns - span.start_time_ns) / 1e9
        asked = (queue.start_time_ns - span.start_time_ns) / 1e9
        assert encoded - 1e-6 <= until_engine <= asked + 1e-6
        later = told[USAGE]["output_tokens"] - 1
        speed = later / told["onnx_genai.decode_seconds"]
        assert told["onnx_genai.tokens_per_second"] == pytest.approx(speed)


@pytest.mark.usefixtures("traced")
def test_tokens_from_the_cache_are_counted(demo: Path) -> None:
    with GenAIModel(demo) as model:
        model.chat(CAPITAL, max_tokens=3)
        answer = model.chat(CAPITAL, max_tokens=3)
    first, second = all_traces()
    assert "cache_read_input_tokens" not in main_span(first).attributes[USAGE]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert main_span(second).attributes[USAGE]["cache_read_input_tokens"] == cached > 0
    assert main_span(second).attributes["onnx_genai.usage"] == answer["usage"]


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_each_row_is_a_trace(model: GenAIModel) -> None:
    rows = [{"messages": CAPITAL, "max_tokens": 3}, {"messages": CAPITAL, "max_tokens": 10**6}]
    params = {"temperature": 0}
    good, bad = model.run("llm/v1/chat", rows, params, on_error="row")
    traces = {str(trace.info.state): trace for trace in all_traces()}
    assert set(traces) == {"OK", "ERROR"}
    span = main_span(traces["OK"])
    assert span.inputs == {**rows[0], **params}
    assert span.outputs == good
    failed = main_span(traces["ERROR"])
    assert failed.status.description == f"ContextLengthError: {bad['error']['message']}"


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_a_failure_is_a_status_with_its_type(model: GenAIModel) -> None:
    with pytest.raises(ContextLengthError) as refused:
        model.chat(CAPITAL, max_tokens=10**6)
    with pytest.raises(GenerationTimeoutError):
        model.chat(CAPITAL, max_tokens=3000, min_tokens=3000, timeout=0.05)
    with pytest.raises(GenerationTimeoutError):
        list(model.stream_chat(CAPITAL, max_tokens=3000, min_tokens=3000, timeout=0.05))
    spans = [main_span(trace) for trace in all_traces()]
    names = ["ContextLengthError", "GenerationTimeoutError", "GenerationTimeoutError"]
    assert [span.attributes["error.type"] for span in spans] == names
    for span, name in zip(spans, names, strict=True):
        assert span.status.status_code == "ERROR"
        assert span.status.description.startswith(f"{name}: ")
        assert span.events[-1].attributes["exception.type"] == name
    assert spans[0].status.description == f"ContextLengthError: {refused.value.message}"
    assert spans[1].outputs is None
    assert spans[2].outputs["choices"][0]["finish_reason"] is None
    assert spans[2].attributes["onnx_genai.finish_reasons"] == ["cancelled"]


@ONE_LOOP
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("awaited", [False, True])
def test_a_stream_that_is_left_ends_with_what_came(model: GenAIModel, *, awaited: bool) -> None:
    asked: dict[str, Any] = {"messages": CAPITAL, "max_tokens": 3000, "min_tokens": 3000}

    async def read() -> list[Any]:
        chunks = model.arun_stream("llm/v1/chat", asked)
        read = [await anext(chunks) for _ in range(4)]
        await chunks.aclose()
        return read

    if awaited:
        came = asyncio.run(read())
    else:
        chunks = model.run_stream("llm/v1/chat", asked)
        came = [next(chunks) for _ in range(4)]
        chunks.close()
    trace = only_trace()
    span = main_span(trace)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in came)
    (choice,) = span.outputs["choices"]
    assert text
    assert choice["message"]["content"].startswith(text)
    assert span.attributes["onnx_genai.finish_reasons"] == ["cancelled"]
    assert span.status.status_code == "OK"
    assert [part.name for part in parts(trace, span)][1:] == ["queue", "prefill", "decode"]


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_a_stream_that_ends_after_its_trace_loses_nothing(
    model: GenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")  # which hands on some at a time
    mlflow.tracing.reset()
    for _ in range(3):
        with mlflow.start_span("agent"):
            chunks = model.stream_chat(CAPITAL, n=2, max_tokens=100)
            assert len([next(chunks) for _ in range(8)]) == 8
        chunks.close()
    spans = [main_span(trace) for trace in all_traces()]
    assert [span.status.status_code for span in spans] == ["OK"] * 3


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_a_stream_that_nobody_reads_is_no_trace(model: GenAIModel) -> None:
    model.stream_chat(CAPITAL)
    model.stream_chat(CAPITAL).close()
    assert all_traces() == []


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_an_awaited_call_that_is_cancelled_has_failed(model: GenAIModel) -> None:
    async def leave() -> None:
        call = asyncio.ensure_future(model.achat(CAPITAL, max_tokens=3000, min_tokens=3000))
        while not model.load.running:
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(leave())
    span = main_span(only_trace())
    assert span.attributes["error.type"] == "CancelledError"
    assert span.attributes["onnx_genai.finish_reasons"] == ["cancelled"]
    assert span.outputs is None


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_a_call_inside_of_a_span_belongs_to_its_trace(model: GenAIModel) -> None:
    @mlflow.trace
    def ask() -> Any:
        model.chat(CAPITAL, max_tokens=3)
        return list(model.stream_chat(CAPITAL, max_tokens=3))[-1]

    @mlflow.trace
    async def aask() -> Any:
        await model.achat(CAPITAL, max_tokens=3)
        return [chunk async for chunk in model.astream_chat(CAPITAL, max_tokens=3)][-1]

    ask()
    asyncio.run(aask())
    for trace in all_traces():
        (root,) = [span for span in trace.data.spans if span.parent_id is None]
        assert root.name in ("ask", "aask")
        calls = [span for span in trace.data.spans if span.span_type == "CHAT_MODEL"]
        assert [call.parent_id for call in calls] == [root.span_id] * 2
        assert trace.info.token_usage
        assert trace.info.token_usage["output_tokens"] == 6


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_threads_have_traces_of_their_own(model: GenAIModel) -> None:
    @mlflow.trace
    def ask(number: int) -> str:
        return model.generate("Once", max_tokens=1 + number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(16)))
    traces = all_traces()
    assert len(traces) == 16
    for trace in traces:
        (root,) = [span for span in trace.data.spans if span.parent_id is None]
        assert main_span(trace).inputs["max_tokens"] == 1 + root.inputs["number"]


@ONE_LOOP
@pytest.mark.usefixtures("traced")
def test_a_pyfunc_s_rows_and_streams(demo: Path, loop: str) -> None:
    info = mlflow_phi3_onnx.log_model(demo, name="demo", model_config={"loop": loop})
    pyfunc = mlflow.pyfunc.load_model(info.model_uri)
    frame = pd.DataFrame({"messages": [CAPITAL, CAPITAL], "max_tokens": [3, 4]})
    answers = pyfunc.predict(frame)
    chunks: list[Any] = list(pyfunc.predict_stream({"messages": CAPITAL, "max_tokens": 5}))
    native = mlflow_phi3_onnx.load_model(info.model_uri)
    native.chat(CAPITAL, max_tokens=6)
    with mlflow.start_span("outer"):
        native.chat(CAPITAL, max_tokens=7)
    other = mlflow.create_external_model(name="other")
    with mlflow.set_active_model(model_id=other.model_id):
        native.chat(CAPITAL, max_tokens=8)
    native.close()
    traces = {main_span(trace).inputs["max_tokens"]: trace for trace in all_traces()}
    assert [main_span(traces[most]).outputs for most in (3, 4)] == answers
    assert main_span(traces[5]).outputs["id"] == chunks[0]["id"]
    linked = {most: trace.info.trace_metadata["mlflow.modelId"] for most, trace in traces.items()}
    told = {main_span(trace).attributes["onnx_genai.model_id"] for trace in traces.values()}
    assert told == {info.model_id}
    assert linked == {**dict.fromkeys((3, 4, 5, 6, 7), info.model_id), 8: other.model_id}
    assert mlflow.get_active_model_id() is None


@ONE_LOOP
@pytest.mark.usefixtures("traced")
@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")  # MLflow's own
def test_an_evaluation_sees_one_trace_a_row(model: GenAIModel) -> None:
    countries = ["Spain", "Italy", "France", "Japan", "Peru", "Cuba", "Chile", "Egypt", "Kenya"]
    data = [{"inputs": {"country": country}} for country in countries]

    def predict(country: str) -> str:
        asked = [{"role": "user", "content": f"What is the capital of {country}?"}]
        return model.chat(asked, max_tokens=8)["choices"][0]["message"]["content"]

    @mlflow.genai.scorer
    def length(trace: Any) -> int:
        return main_span(trace).attributes[USAGE]["output_tokens"]

    result = mlflow.genai.evaluate(data=data, predict_fn=predict, scorers=[length])
    run = f"metadata.`mlflow.sourceRun` = '{result.run_id}'"
    found: Any = mlflow.search_traces(filter_string=run, return_type="list")
    asked = [main_span(trace).inputs["messages"][0]["content"] for trace in found]
    assert sorted(asked) == sorted(f"What is the capital of {country}?" for country in countries)
