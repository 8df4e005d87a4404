"""MLflow's AI Gateway in front of the server, as its page says."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
import requests
from mlflow import MlflowClient
from openai import OpenAI

from tests.support.doors import SPAIN
from tests.support.http_server import running, until

if TYPE_CHECKING:
    from collections.abc import Generator

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
VARIABLES = dict(re.findall(r"(MLFLOW_GATEWAY_\w+)=(\S+)", PAGE))
MADRID = "The capital of Spain is Madrid."


@contextmanager
def tracking_server(folder: Path) -> Generator[str]:
    """Run MLflow's server with the page's variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", "sqlite:///gateway.db"],
            cwd=folder,
            env={**os.environ, **VARIABLES},
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
        except requests.RequestException:
            return False

    try:
        until(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    messages: Any = SPAIN
    (tmp_path / "keys").write_text("sk-abcdefgh", encoding="utf-8")
    with (
        running({"capitals": None}, api_key_file=str(tmp_path / "keys")) as served,
        running({"full": None}, max_running=1, max_queue=0) as full,
        tracking_server(tmp_path) as gateway,
    ):
        program = PROGRAM.replace("http://127.0.0.1:5000", gateway)
        program = program.replace("http://127.0.0.1:8000", served.url)
        program = program.replace("one of keys.txt", "sk-abcdefgh")
        made: dict[str, Any] = {}
        exec(program, made)  # noqa: S102 - the page's own
        assert made["answer"].choices[0].message.content == MADRID
        assert made["answer"].usage.total_tokens == 18

        client: OpenAI = made["client"]
        create = client.chat.completions.create
        *_, last = create(model="geography", messages=messages, stream=True)
        assert last.usage is not None
        assert last.usage.total_tokens == 18
        question = "What is the capital of Spain?"
        respond = client.responses.create
        assert respond(model="geography", input=question).output_text == MADRID
        *_, end = respond(model="geography", input=question, stream=True)
        assert end.type == "response.completed"
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="geography", messages=messages, temperature=1.9, top_p=7)
        assert "top_p must be" in caught.value.response.text
        with OpenAI(base_url=f"{gateway}/gateway/mlflow/v1", api_key="x") as other:
            answer = other.chat.completions.create(model="geography", messages=messages)
        assert answer.choices[0].message.content == MADRID

        falls_back(made, full.url)
        with full.send({"messages": SPAIN, "min_tokens": 4000}):
            until(lambda: full.metric("num_requests_running") == 1)
            answer = create(model="patient", messages=messages)
            assert (answer.model, answer.choices[0].message.content) == ("capitals", MADRID)
            assert full.metric("http_requests_total", status="429") == 1
        until(lambda: 18 in tokens_in_traces(gateway))


def falls_back(made: dict[str, Any], url: str) -> None:
    """Make an endpoint whose first model is at another server, and whose second is the page's."""
    make = made["make"]
    secret = make(
        "secrets", secret_name="full", provider="openai", secret_value={"api_key": "any"},
        auth_config={"api_base": f"{url}/v1"},
    )["secret"]  # fmt: skip
    definition = make(
        "model-definitions", name="full", provider="openai", secret_id=secret["secret_id"],
        model_name="full",
    )["model_definition"]  # fmt: skip
    configs = [
        {**made["primary"], "model_definition_id": definition["model_definition_id"]},
        {**made["primary"], "linkage_type": "FALLBACK", "fallback_order": 1},
    ]
    fallback = {"strategy": "SEQUENTIAL", "max_attempts": 1}
    make("endpoints", name="patient", model_configs=configs, fallback_config=fallback)


def tokens_in_traces(gateway: str) -> set[int]:
    """The tokens that the traces of the gateway's endpoints have so far."""
    client = MlflowClient(tracking_uri=gateway)
    ids = [one.experiment_id for one in client.search_experiments()]
    usages = [
        trace.info.token_usage for trace in client.search_traces(locations=ids, include_spans=False)
    ]
    return {usage["total_tokens"] for usage in usages if usage}
