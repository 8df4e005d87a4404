"""MLflow's clients find what they know: its scoring server's answers, and its endpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.pyfunc.scoring_server import invocations

import mlflow_phi3_onnx
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT
from tests.support.doors import CANARY, SPAIN
from tests.support.http_server import Running, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "The capital of Spain is"
FOUR = {"max_tokens": 4}

BODIES: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": SPAIN, "max_tokens": 3},
        {"messages": SPAIN, "n": 2, "logprobs": True, "stop": ["Spain"]},
        {
            "dataframe_split": {
                "columns": ["messages", "max_tokens"],
                "data": [[SPAIN, 2], [SPAIN, None]],
            },
            "params": FOUR,
        },
        {"dataframe_split": {"columns": ["messages"], "index": [7], "data": [[SPAIN]]}},
        {
            "dataframe_records": [{"messages": SPAIN, "max_tokens": 2}, {"messages": SPAIN}],
            "params": {"max_tokens": 1},
        },
        {"inputs": {"messages": SPAIN, "max_tokens": 2}},
        {"inputs": [{"messages": SPAIN, "max_tokens": 2}]},
    ],
    COMPLETIONS: [
        {"prompt": PROMPT, "max_tokens": 2},
        {"prompt": [PROMPT, PROMPT], "max_tokens": 2, "echo": True},
        {"dataframe_split": {"columns": ["prompt"], "data": [[PROMPT], [PROMPT]]}, "params": FOUR},
        {"dataframe_records": [{"prompt": PROMPT}], "params": FOUR},
        {"inputs": [{"prompt": PROMPT}], "params": FOUR},
        {"inputs": {"prompt": PROMPT}, "params": FOUR},
        {"inputs": {"prompt": [PROMPT, PROMPT]}, "params": FOUR},
        {"instances": [{"prompt": PROMPT}], "params": FOUR},
    ],
    TEXT: [
        {"prompt": PROMPT},
        {"prompt": PROMPT, "max_tokens": 2},
        {"dataframe_split": {"columns": ["prompt"], "data": [[PROMPT], [PROMPT]]}, "params": FOUR},
        {"dataframe_records": [{"prompt": PROMPT}], "params": FOUR},
        {"instances": [PROMPT, PROMPT], "params": FOUR},
        {"inputs": [PROMPT, PROMPT], "params": {"stop": ["a"]}},
        {"inputs": [{"prompt": PROMPT}], "params": FOUR},
        {"inputs": {"prompt": [PROMPT, PROMPT]}, "params": FOUR},
        {"inputs": {"prompt": PROMPT}, "params": FOUR},
        {"instances": [{"prompt": PROMPT}], "params": FOUR},
    ],
}
"""Bodies that MLflow's server takes, by the model's task."""


@pytest.fixture(scope="module", params=ALL_TASKS)
def artifact(
    request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("artifact") / "saved model"
    config = {"loop": "genai", "prefix_cache": False}
    mlflow_phi3_onnx.save_model(demo, path, task=request.param, model_config=config)
    return request.param, path


@pytest.fixture(scope="module")
def served(artifact: tuple[str, Path]) -> Iterator[Running]:
    with running({"x": str(artifact[1])}, model_config={}) as one:
        yield one


def plain(answer: Any) -> Any:
    """What is the same in every response to a request."""
    if isinstance(answer, dict):
        changing = {"id", "created", "model"}
        return {key: plain(value) for key, value in answer.items() if key not in changing}
    return [plain(item) for item in answer] if isinstance(answer, list) else answer


def test_the_answers_are_those_of_mlflow_s_server(
    artifact: tuple[str, Path], served: Running
) -> None:
    task, path = artifact
    model = mlflow.pyfunc.load_model(str(path))
    schema = model.metadata.get_input_schema()
    with model.get_raw_model():
        for body in BODIES[task]:
            theirs = invocations(json.dumps(body), "application/json", model, schema)
            ours = served.post("/invocations", body)
            assert (ours.status, theirs.status) == (200, 200), ours.body
            assert plain(ours.json) == plain(json.loads(theirs.response)), body


@pytest.mark.parametrize(
    "body",
    [
        {}, {"params": {}}, {"x": 1}, {"inputs": [], "instances": []}, {"dataframe_split": []},
        {"dataframe_split": {"columns": ["messages"]}}, {"dataframe_records": {"messages": {}}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, {"dataframe_records": [1]},
        {"dataframe_split": {"columns": CANARY, "data": [[CANARY]]}}, {"inputs": 5},
        {"dataframe_split": {"columns": [["a"], {}], "data": [[1, 2]]}},
        {"dataframe_records": [{CANARY: CANARY}]}, {"inputs": [{"x": CANARY}]},
        {"inputs": [None]}, {"instances": [[CANARY]]}, {"messages": SPAIN, "params": {}},
        {"inputs": ["x"], "params": [CANARY]}, {"inputs": ["x"], "params": {CANARY[:3]: 1}},
    ],
    ids=lambda body: json.dumps(body)[:50],
)  # fmt: skip
def test_bodies_that_are_refused(server: Running, body: dict[str, Any]) -> None:
    reply = server.post("/invocations", body)
    assert reply.status == 400
    assert reply.error["message"]
    if "x" not in json.dumps(body):  # a field's name may be told
        assert CANARY not in json.dumps(reply.json["error"]["message"]).replace(f"{CANARY} is", "")


def test_a_stream_is_for_the_other_routes(server: Running) -> None:
    for body in (
        {"messages": SPAIN, "stream": True},
        {"inputs": ["x"], "params": {"stream": True}},
    ):
        reply = server.post("/invocations", body)
        assert (reply.status, reply.error["param"]) == (400, "stream")
        assert "Use /v1/chat/completions" in reply.error["message"]


def test_a_model_may_be_named(server: Running) -> None:
    body = {"messages": SPAIN, "max_tokens": 1}
    assert server.post("/invocations", {**body, "model": "demo"}).status == 200
    assert server.post("/invocations", {**body, "model": "other"}).status == 404


def test_mlflow_s_deployment_client(server: Running) -> None:
    client: Any = get_deploy_client(server.url)
    (endpoint,) = client.list_endpoints()
    assert endpoint.name == "demo"
    assert endpoint.endpoint_type == "llm/v1/chat"
    assert endpoint.endpoint_url == f"{server.url}/endpoints/demo/invocations"
    assert client.get_endpoint("demo") == endpoint
    inputs = {"messages": SPAIN, "temperature": 0.0, "n": 1, "max_tokens": 20}
    answer = client.predict(endpoint="demo", inputs=inputs)
    assert answer["choices"][0]["message"]["content"] == "The capital of Spain is Madrid."
    completed = client.predict(endpoint="demo", inputs={"prompt": PROMPT, "max_tokens": 2})
    assert completed["object"] == "text_completion"


def test_endpoints_answer_as_openai_does(artifact: tuple[str, Path], served: Running) -> None:
    task, _ = artifact
    chat = served.post("/endpoints/x/invocations", {"messages": SPAIN, "max_tokens": 2})
    assert chat.json["object"] == "chat.completion"
    text = served.post("/endpoints/x/invocations", {"prompt": PROMPT, "max_tokens": 2})
    assert text.json["object"] == "text_completion"
    told = served.get("/api/2.0/endpoints/x").json
    assert told["task"] == (CHAT if task == CHAT else COMPLETIONS)
    reply = served.get("/api/2.0/endpoints/y")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    stream = served.post(
        "/endpoints/x/invocations", {"messages": SPAIN, "max_tokens": 2, "stream": True}
    )
    assert stream.events[-1] == "[DONE]"
