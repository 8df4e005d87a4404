"""MLflow's clients find what they know: its scoring server's answers, and its endpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.pyfunc.scoring_server import invocations

import mlflow_phi3_onnx
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT
from mlflow_phi3_onnx.server.payload import parse_csv
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


def test_csv_is_answered_as_by_mlflow_s_server(artifact: tuple[str, Path], served: Running) -> None:
    task, path = artifact
    prompt = json.dumps(SPAIN) if task == CHAT else f"{PROMPT}, \u201cM\u201d"
    name = "messages" if task == CHAT else "prompt"
    frame = pd.DataFrame({name: [prompt, prompt], "max_tokens": [2, 3]})
    if task != CHAT:
        frame["ignore_eos"] = [True, False]
    text = frame.to_csv(index=False)
    ours = served.post("/invocations", text.encode(), {"Content-Type": "text/csv; charset=utf-8"})
    assert ours.status == 200, ours.body
    if task == CHAT:  # which MLflow's server takes no CSV for
        records = served.post("/invocations", {"dataframe_records": frame.to_dict("records")})
        assert plain(ours.json) == plain(records.json)
        return
    model = mlflow.pyfunc.load_model(str(path))
    with model.get_raw_model():
        theirs = invocations(text, "text/csv", model, model.metadata.get_input_schema())
        assert plain(ours.json) == plain(json.loads(theirs.response))


def test_cells_of_csv_are_the_texts_that_they_are() -> None:
    for cell in ("NA", "007", "null", "1e5", "True", '"a,\n"""'):
        payload = parse_csv(f"\ufeffprompt,seed,top_k,echo\r\n{cell},5,,True\r\n".encode())
        plain = cell.strip('"') + '"' * ("a" in cell)
        assert payload.rows(COMPLETIONS) == [{"prompt": plain, "seed": 5, "echo": True}]


def test_csv_that_is_refused(server: Running) -> None:
    csv = {"Content-Type": "text/csv"}
    talk = json.dumps(SPAIN).replace('"', '""')
    for body, status, param in (
        (f'messages,x\n"{talk}",1\n', 400, "x"),
        (f'messages,temperature\n"{talk}",9\n', 400, "temperature"),
        (f'messages,temperature\n"{talk}",nan\n', 400, "temperature"),
        (f'messages,stream\n"{talk}",true\n', 400, "stream"),
        (f'messages,model\n"{talk}",other\n', 404, "model"),
        ("", 400, None),
        ("a,a\n1,2\n", 400, None),
        ("messages\na,b\n", 400, None),
        ("messages,seed\na\n", 400, None),
        ('messages\n"', 400, None),
    ):
        reply = server.post("/invocations", body.encode(), csv)
        assert (reply.status, reply.error["param"]) == (status, param), body
    assert server.post("/invocations", b"messages\n\xff\n", csv).status == 400
    assert server.post("/invocations", b"messages,seed\n", csv).json == {"predictions": []}
    for kind, path, status in (
        ("text/csv; charset=latin-1", "/invocations", 415), ("text/csv", "/v1/completions", 415),
        ("text/plain", "/invocations", 415), ("text/csv", "/invocations", 413),
    ):  # fmt: skip
        body = b"x" * (5 << 20) if status == 413 else b"x"
        reply = server.post(path, body, {"Content-Type": kind})
        assert reply.status == status
        assert reply.error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {}, {"params": {}}, {"x": 1}, {"inputs": [], "instances": []}, {"dataframe_split": []},
        {"dataframe_split": {"columns": ["messages"]}}, {"dataframe_records": {"messages": {}}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, {"dataframe_records": [1]},
        {"dataframe_split": {"columns": CANARY, "data": [[CANARY]]}}, {"inputs": 5},
        {"dataframe_split": {"columns": [["a"], {}], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": [{"a": 1}], "data": [[1]]}},
        {"dataframe_split": {"columns": [None], "data": [[SPAIN]]}},
        {"dataframe_split": {"columns": "messages", "data": [[SPAIN]]}},
        {"dataframe_split": {"columns": ["messages"], "data": {"rows": [SPAIN]}}},
        {"dataframe_split": {"columns": ["messages"], "data": [{"messages": SPAIN}]}},
        {"dataframe_split": {"columns": ["messages"], "data": ["x"]}},
        {"dataframe_split": {"columns": ["messages", "seed"], "data": [[SPAIN, 1], [SPAIN]]}},
        {"dataframe_split": {"columns": ["messages", "messages"], "data": [[SPAIN, SPAIN]]}},
        {"dataframe_split": {"columns": ["1", 1], "data": [[SPAIN, SPAIN]]}},
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


def in_all_forms(messages: Any, **fields: Any) -> list[dict[str, Any]]:
    """One request in each of the forms in which fields may stand."""
    row, beside = {"messages": messages, **fields}, {"params": {"max_tokens": 12, **fields}}
    return [
        {**row, "max_tokens": 12},
        {"dataframe_records": [row, row], "params": {"max_tokens": 12}},
        {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}, **beside},
        {"dataframe_split": {"columns": ["messages"], "data": [[messages]]}, **beside},
        {"inputs": [row], "params": {"max_tokens": 12}},
        {"inputs": {name: [value] * 2 for name, value in row.items()}},
        {"inputs": {"messages": messages}, **beside},
        {"instances": [{"messages": messages}] * 2, **beside},
    ]


def test_a_model_may_be_named(server: Running) -> None:
    for body in in_all_forms(SPAIN, model="demo"):
        reply = server.post("/invocations", body)
        answers = reply.json["predictions"] if isinstance(reply.json, dict) else reply.json
        assert {answer["model"] for answer in answers} == {"demo"}, reply.body
    for body in in_all_forms(SPAIN, model="other"):
        reply = server.post("/invocations", body)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found"), body
    for body in in_all_forms(SPAIN, model=5):
        reply = server.post("/invocations", body)
        assert (reply.status, reply.error["param"]) == (400, "model"), body


def test_rows_are_for_one_model(server: Running) -> None:
    rows = [{"messages": SPAIN, "model": "demo"}, {"messages": SPAIN, "model": "other"}]
    for body in (
        {"dataframe_records": rows},
        {"instances": rows},
        {"inputs": [rows[1], {"messages": SPAIN}]},
        {"inputs": [*rows[1:], {"messages": SPAIN}], "params": {"model": "demo"}},
        {"inputs": {"messages": [SPAIN, SPAIN], "model": ["demo", "other"]}},
    ):
        reply = server.post("/invocations", body)
        assert (reply.status, reply.error["param"]) == (400, "model")
        assert "the same in all rows" in reply.error["message"]
    same = {"inputs": [rows[0], {"messages": SPAIN}], "params": {"max_tokens": 1}}
    assert server.post("/invocations", same).status == 200


def test_tokens_are_counted_whatever_is_answered_with() -> None:
    with running() as served:
        for output in ("openai", "text", "json"):
            body = {"messages": SPAIN, "max_tokens": 3, "output": output}
            assert served.post("/invocations", body).status == 200
        assert served.metric("generation_tokens_total") == 9
        assert served.metric("prompt_tokens_total") == 30
        assert served.metric("request_success_total", finished_reason="length") == 3


def test_stream_options_are_for_a_stream(server: Running) -> None:
    options = {"stream_options": {"include_usage": True}}
    for path, body in (
        ("/v1/chat/completions", {"messages": SPAIN, **options}),
        ("/v1/chat/completions", {"messages": SPAIN, "stream": False, **options}),
        ("/v1/completions", {"prompt": "x", **options}),
        ("/endpoints/demo/invocations", {"messages": SPAIN, **options}),
        ("/invocations", {"messages": SPAIN, **options}),
        ("/invocations", {"dataframe_records": [{"messages": SPAIN, **options}]}),
        ("/invocations", {"inputs": [{"messages": SPAIN}], "params": options}),
    ):
        reply = server.post(path, body)
        assert (reply.status, reply.error["param"]) == (400, "stream_options"), body
    ask = {"messages": SPAIN, "max_tokens": 1}
    assert server.chat({**ask, "stream_options": None}).status == 200
    padded = {"include_obfuscation": False}
    assert server.chat({**ask, "stream": True, "stream_options": padded}).status == 200
    refused = server.chat({**ask, "stream": True, "stream_options": {"include_obfuscation": True}})
    assert refused.error["param"] == "stream_options"


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
