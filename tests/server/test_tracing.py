"""A server's traces: one a request, with the request's id, below the span that the caller names."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.tracing
import pytest
from mlflow.tracing import get_tracing_context_headers_for_http_request

from mlflow_phi3_onnx import InvalidRequestError
from mlflow_phi3_onnx.server.run import make_server
from mlflow_phi3_onnx.server.settings import ServerSettings
from tests.support.doors import CANARY, SPAIN
from tests.support.http_server import Running, in_process, running, until
from tests.support.traces import all_traces, main_span, only_trace, parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"messages": SPAIN, "max_tokens": 5}
REMOTE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def store(tracking: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh MLflow store; what a server sets of MLflow in this process ends with it."""
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    mlflow.tracing.reset()
    yield tracking
    mlflow.flush_trace_async_logging(terminate=True)
    mlflow.tracing.reset()


@pytest.fixture
def served(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that traces with content, to an experiment of its own."""
    assert store
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")
    with running(trace=True, trace_content=True) as one:
        yield one


def test_each_answer_is_a_trace_with_the_request_s_id(
    served: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlflow_phi3_onnx")
    replies = [
        served.chat(ASKED),
        served.chat({**ASKED, "stream": True}),
        served.post("/v1/completions", {"prompt": "Once", "max_tokens": 2}),
        served.post("/v1/responses", {"input": "Hello", "max_output_tokens": 4}),
        served.post("/endpoints/demo/invocations", ASKED),
        served.chat({**ASKED, "max_tokens": -1}),
        served.post("/invocations", {"instances": [ASKED, {**ASKED, "max_tokens": 4}]}),
    ]
    served.get("/v1/models")
    served.post("/tokenize", {"prompt": "Once"})
    ids = [reply.headers["x-request-id"] for reply in replies]
    traces = all_traces()
    assert [trace.info.client_request_id for trace in traces] == [*ids, ids[-1]]
    assert mlflow.get_experiment(traces[0].info.experiment_id or "").name == "served"
    spans = [main_span(trace) for trace in traces]
    assert [span.attributes["onnx_genai.request_id"] for span in spans] == [*ids, ids[-1]]
    assert {span.attributes["mlflow.llm.model"] for span in spans} == {"demo"}
    assert spans[0].outputs == replies[0].json
    text = "".join(
        json.loads(event)["choices"][0]["delta"].get("content", "")
        for event in replies[1].events[:-1]
    )
    assert spans[1].outputs["choices"][0]["message"]["content"] == text
    (chunk, *_) = spans[1].events
    assert json.loads(chunk.attributes["mlflow.chunk.value"])["model"] == "demo"  # type: ignore[arg-type] - a string
    assert spans[5].attributes["error.type"] == "InvalidRequestError"
    lines = [getattr(record, "request", {}) for record in caplog.records]
    assert {*ids} < {line.get("request_id") for line in lines}
    wanted = f"trace.client_request_id = '{ids[0]}'"
    found: Any = mlflow.search_traces(filter_string=wanted, return_type="list")
    assert [trace.info.trace_id for trace in found] == [traces[0].info.trace_id]


def test_a_caller_s_span_is_the_parent(served: Running) -> None:
    headers = {"traceparent": f"00-{REMOTE}-{PARENT}-01"}
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(served.post, CHAT, {**ASKED, "stream": stream}, headers)
            for stream in (False, True, False, True)
        ]
        replies = [call.result() for call in calls]
    assert [reply.status for reply in replies] == [200] * 4
    mlflow.flush_trace_async_logging()
    trace = mlflow.get_trace(f"tr-{REMOTE}")
    assert trace is not None
    spans = [span for span in trace.data.spans if span.span_type == "CHAT_MODEL"]
    assert [span.parent_id for span in spans] == [PARENT] * 4
    told = {span.attributes["onnx_genai.request_id"] for span in spans}
    assert told == {reply.headers["x-request-id"] for reply in replies}
    assert all(len(parts(trace, span)) == 4 for span in spans)
    for request_id in told:
        wanted = f"span.attributes.onnx_genai.request_id LIKE '%{request_id}%'"
        found: Any = mlflow.search_traces(filter_string=wanted, return_type="list")
        assert [one.info.trace_id for one in found] == [trace.info.trace_id]


def test_a_caller_in_the_same_process(served: Running) -> None:
    with mlflow.start_span("agent") as agent:
        served.post(CHAT, ASKED, get_tracing_context_headers_for_http_request())
        served.post(CHAT, ASKED, get_tracing_context_headers_for_http_request())
    trace = only_trace()
    assert trace.info.trace_id == agent.trace_id
    spans = [span for span in trace.data.spans if span.span_type == "CHAT_MODEL"]
    assert [span.parent_id for span in spans] == [agent.span_id] * 2


@pytest.mark.parametrize(
    "header", ["", "00-0-0-01", CANARY, f"00-{'0' * 32}-{PARENT}-01", f"00-{REMOTE}-{PARENT}"]
)
def test_a_header_that_names_no_span_is_left_out_of_account(served: Running, header: str) -> None:
    assert served.post(CHAT, ASKED, {"traceparent": header}).status == 200
    assert main_span(only_trace()).parent_id is None


def test_a_caller_that_does_not_sample_gets_no_trace(served: Running) -> None:
    headers = {"traceparent": f"00-{REMOTE}-{PARENT}-00"}
    assert served.post(CHAT, ASKED, headers).status == 200
    assert all_traces() == []


def test_a_client_that_goes(served: Running) -> None:
    long = {**ASKED, "max_tokens": 3000, "min_tokens": 3000}
    for stream in (True, False):
        with served.send({**long, "stream": stream}) as connection:
            if stream:
                connection.recv(500)
            until(lambda: served.metric("batch_size") == 1)
        until(lambda: served.metric("num_requests_running") == 0)
    left, cancelled = (main_span(trace) for trace in all_traces())
    assert left.attributes["onnx_genai.finish_reasons"] == ["cancelled"]
    assert cancelled.attributes["error.type"] == "CancelledError"


@pytest.mark.usefixtures("store")
def test_content_is_for_the_operator_to_ask_for() -> None:
    asked = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 5}
    with running(trace=True) as served:
        assert served.chat(asked).status == 200
        assert served.chat({**asked, "n": 0}).status == 400
        traces = all_traces()
    assert len(traces) == 2
    assert CANARY not in "".join(trace.to_json() for trace in traces)
    with pytest.raises(InvalidRequestError, match="so it needs trace") as refused:
        ServerSettings.check({"trace_content": True})
    assert refused.value.param == "trace_content"


@pytest.mark.usefixtures("store")
def test_without_the_option_there_is_no_trace(server: Running) -> None:
    server.chat(ASKED)
    assert all_traces() == []


@pytest.mark.usefixtures("store")
def test_an_experiment_that_cannot_be_found_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with pytest.raises(InvalidRequestError, match="MLFLOW_EXPERIMENT_ID names cannot be found"):
        make_server({"demo": None}, ServerSettings.check({"trace": True, "lazy": True}))


def test_a_tracking_server_that_is_down_holds_nothing_up(tmp_path: Path) -> None:
    down = "http://127.0.0.1:9"
    with in_process("--trace", log=tmp_path / "log", MLFLOW_TRACKING_URI=down) as (served, process):
        for stream in (False, True):
            assert served.chat({**ASKED, "stream": stream}).status == 200
        process.terminate()
        assert process.wait(60) == 0
    assert "Traces are lost" in (tmp_path / "log").read_text()
