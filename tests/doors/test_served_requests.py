"""The table of requests through ``/invocations``, with either loop, alone and beside others."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient

import mlflow_phi3_onnx
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from tests.support.doors import (
    CANARY,
    ONE_LOOP,
    REPORTED,
    SPAIN,
    Answer,
    Bad,
    check_same,
    crowd,
    whole_chat,
)
from tests.support.names import NAMES, wrong
from tests.support.servers import Server, serve
from tests.support.table import BAD, GOOD, SAME, check_good

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo: Path, loop: str) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow_phi3_onnx.log_model(
            demo, name="chat", model_config={"loop": loop}, registered_model_name="chat"
        )
        MlflowClient().set_registered_model_alias("chat", "champion", "1")
        yield from serve(folder, "chat")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] - None restores the default


def ask(server: Server, fields: dict[str, Any]) -> Answer:
    status, body = server.post(as_mlflow_takes_it(fields))
    assert status == 200, body
    return whole_chat(body[0])


def as_mlflow_takes_it(fields: dict[str, Any]) -> dict[str, Any]:
    """Its server puts ``stop`` into ``params``, which take a list and nothing else."""
    stop = fields.get("stop")
    if isinstance(stop, str):
        return {**fields, "stop": [stop]}
    return {k: v for k, v in fields.items() if k != "stop" or v is not None}


@pytest.mark.parametrize("stop", ["pain", None])
def test_mlflow_s_server_refuses_a_stop_that_is_no_list(server: Server, stop: Any) -> None:
    status, body = server.post({"messages": SPAIN, "stop": stop})
    assert status == 400
    assert "'stop', \"Value must be a 1D array" in body["message"]


def check_all(server: Server, references: list[Answer]) -> None:
    for case in GOOD:
        check_good(ask(server, {"messages": SPAIN, **case.fields}), case)
    for fields, reference in zip(SAME, references, strict=True):
        check_same(ask(server, {**fields, **REPORTED}), reference)


def test_good_requests(server: Server, references: list[Answer]) -> None:
    check_all(server, references)


def test_good_requests_beside_seven_others(server: Server, references: list[Answer]) -> None:
    with crowd(lambda fields: ask(server, fields)):
        check_all(server, references)


def test_bad_requests(server: Server) -> None:
    for case in BAD:
        try:
            payload = json.loads(json.dumps(case.fields, allow_nan=False))
        except ValueError:
            continue  # JSON has no infinite numbers
        if payload.get("choice") == []:
            continue  # for MLflow, an empty list of a parameter is none
        status, body = server.post(payload)
        assert status == 400, case
        if mlflow_refuses(case):
            assert case.param in body["message"], case
        else:
            assert case.says in body["message"], case
            assert CANARY not in json.dumps(body)


@ONE_LOOP
def test_every_name_arrives_over_http(server: Server) -> None:
    for task, row in NAMES:
        if task == "llm/v1/chat":
            status, body = server.post({"messages": SPAIN, row.name: wrong(row)})
            assert status == 400, row.name
            assert row.name in body["message"], row.name


def mlflow_refuses(case: Bad) -> bool:
    """Whether MLflow finds that a parameter is of another type, in words of its own."""
    parameter = PARAMETERS["llm/v1/chat"].get(case.param)
    kind = parameter and parameter.check.type
    value = case.fields.get(case.param)
    right = {
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "true or false": isinstance(value, bool),
        "text": isinstance(value, str),
        "list of texts": isinstance(value, list) and all(isinstance(item, str) for item in value),
        "list of integers": isinstance(value, list)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value),
    }
    return kind is not None and not right[kind]


def test_32_threads_get_what_each_gets_alone(server: Server, references: list[Answer]) -> None:
    work = [(case, None) for case in GOOD] + [(None, number) for number in range(len(SAME))]

    def check(number: int) -> None:
        case, same = work[number % len(work)]
        if case is not None:
            check_good(ask(server, {"messages": SPAIN, **case.fields}), case)
        elif same is not None:
            check_same(ask(server, {**SAME[same], **REPORTED}), references[same])

    with ThreadPoolExecutor(32) as pool:
        for future in [pool.submit(check, number) for number in range(96)]:
            future.result()


def test_work_stops_at_the_server_s_timeout(demo: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        # With one place, a second request is answered only once the first has left it.
        config = {"max_batch_size": 1, "loop": "genai"}
        mlflow_phi3_onnx.log_model(
            demo, name="chat", model_config=config, registered_model_name="chat"
        )
        MlflowClient().set_registered_model_alias("chat", "champion", "1")
        for served in serve(tmp_path, "chat", MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT="2"):
            # Far more than two seconds' worth.
            story = {"messages": SPAIN, "min_tokens": 4000, "logprobs": True, "top_logprobs": 20}
            status, _ = served.post(story)
            assert status == 504
            assert ask(served, {"messages": SPAIN}).text == "The capital of Spain is Madrid."
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] - None restores the default
