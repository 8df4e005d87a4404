"""A server whose worker process is killed: who fails, who does not, and what it tells."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI

from mlflow_phi3_onnx.engine.worker import pulse, remote
from mlflow_phi3_onnx.server import served as serving
from tests.support.doors import SPAIN
from tests.support.http_server import Running, running, until

MADRID = "The capital of Spain is Madrid."
LONG: Any = {"min_tokens": 4000}
CHAT = {"messages": SPAIN, **LONG}
RESPONSE: Any = {"input": "What is the capital of Spain?", **LONG}


def engine(served: Running) -> Any:
    model: Any = served.server.door.models.served[0].open()
    return model._engine


def kill(served: Running) -> None:
    psutil.Process(engine(served).facts["pid"]).kill()


def test_only_the_requests_inside_fail() -> None:
    messages: Any = SPAIN
    whole = [("/v1/chat/completions", CHAT), ("/v1/responses", RESPONSE)]
    with (
        running() as served,
        ThreadPoolExecutor(len(whole)) as pool,
        OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client,
    ):
        inside = [pool.submit(served.post, path, fields) for path, fields in whole]
        chunks = client.chat.completions.create(
            model="demo", messages=messages, stream=True, extra_body=LONG
        )
        events = client.responses.create(
            model="demo", input=RESPONSE["input"], stream=True, extra_body=LONG
        )
        # What fails before the first chunk has a status.
        assert next(chunks).choices[0].delta.role == "assistant"
        assert next(events).type == "response.created"
        until(lambda: served.metric("batch_size") == 4)
        kill(served)
        for one in inside:
            reply = one.result()
            assert (reply.status, reply.error["code"]) == (503, "engine_dead")
            assert "Another is started: try again." in reply.error["message"]
            assert reply.headers["retry-after"] == "1"
        with pytest.raises(openai.APIError, match="Another is started") as caught:
            list(chunks)
        assert caught.value.code == "engine_dead"
        *_, last = events
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "server_error"
        assert "Another is started" in last.response.error.message

        reply = served.chat({"messages": SPAIN})
        assert reply.json["choices"][0]["message"]["content"] == MADRID
        assert served.metric("worker_restarts_total", model_name="demo") == 1
        assert served.get("/ready").status == 200


def test_it_is_not_ready_while_its_engine_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_DEATHS", 0)
    with running() as served:
        assert served.get("/ready").status == 200
        kill(served)
        until(lambda: served.get("/ready").status == 503)
        refused = served.get("/ready")
        assert refused.error["code"] == "model_unavailable"
        assert refused.error["message"].startswith("The engine of demo has died")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert served.get("/health").status == 200
        reply = served.chat({"messages": SPAIN})
        assert (reply.status, reply.error["code"]) == (503, "engine_dead")
        assert 1 <= int(reply.headers["retry-after"]) <= 60

        monkeypatch.setattr(remote, "WHILE_S", 0.0)
        assert served.get("/ready").status == 200
        assert served.chat({"messages": SPAIN}).status == 200
        assert served.metric("worker_restarts_total") == 1
        served.server.door.models.served[0].close()
        assert served.metric("worker_restarts_total") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "isolation",
    [
        "worker",
        pytest.param("shared", marks=pytest.mark.skipif(os.name == "nt", reason="needs Unix")),
    ],
)
def test_a_worker_that_hangs_is_ended(isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "GRACE_S", 2.0)
    monkeypatch.setattr(serving, "_LATER", 0.0)
    with running(timeout=3, model_config={"loop": "slots", "isolation": isolation}) as served:
        psutil.Process(engine(served).facts["pid"]).suspend()
        reply = served.chat({"messages": SPAIN})
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert served.get("/health").status == 200
        until(lambda: served.metric("worker_restarts_total") == 1)
        until(lambda: served.chat({"messages": SPAIN}).status == 200)
