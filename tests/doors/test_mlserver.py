"""Models in MLServer, which speaks the Open Inference Protocol (V2), as KServe and Seldon do."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.serving import HTTP, free_port, running
from mlflow_phi3_onnx import save_model
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.mlserver,
    pytest.mark.skipif(
        importlib.util.find_spec("mlserver_mlflow") is None, reason="needs the mlserver extra"
    ),
]

MODELS: dict[str, Task] = {"chat": CHAT, "completions": COMPLETIONS, "text": TEXT}


@pytest.fixture(scope="module")
def url(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a model of each task."""
    folder = tmp_path_factory.mktemp("mlserver")
    for name, task in MODELS.items():
        save_model(demo, folder / name / "model", task=task, signature="plain")
        settings: dict[str, Any] = {"name": name, "parameters": {"uri": "./model"}}
        settings["implementation"] = "mlserver_mlflow.MLflowRuntime"
        (folder / name / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
    ports = {f"MLSERVER_{name}_PORT": str(free_port()) for name in ("GRPC", "METRICS")}
    environment = {**ports, "MLSERVER_HOST": "127.0.0.1", "MLSERVER_PARALLEL_WORKERS": "0"}
    command = ["env", "MLSERVER_HTTP_PORT={port}", "mlserver", "start", "."]
    with running(command, "/v2/health/ready", folder, **environment) as (address, _):
        yield address


def infer(url: str, model: str, *cells: str, **params: Any) -> list[str]:
    column = "messages" if model == "chat" else "prompt"
    shape = [len(cells), 1]
    tensor = {"name": column, "shape": shape, "datatype": "BYTES", "data": list(cells)}
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer",
        json.dumps({"inputs": [tensor], "parameters": params}).encode(),
        {"Content-Type": "application/json"},
    )
    with HTTP.open(request, timeout=60) as response:
        [output] = json.load(response)["outputs"]
    assert output["shape"] == shape
    return output["data"]


def test_chats_are_answered_with_text_or_json(url: str) -> None:
    spain, italy = (
        json.dumps([{"role": "user", "content": f"What is the capital of {country}?"}])
        for country in ("Spain", "Italy")
    )
    assert infer(url, "chat", spain, italy) == [
        "The capital of Spain is Madrid.",
        "The capital of Italy is Rome.",
    ]
    [answer] = infer(url, "chat", spain, output="json", max_tokens=2)
    assert json.loads(answer)["usage"]["completion_tokens"] == 2
    good, bad = infer(url, "chat", spain, "[1]", on_error="row")
    assert good == "The capital of Spain is Madrid."
    assert json.loads(bad)["error"]["param"] == "messages[0]"


@pytest.mark.parametrize("model", ["completions", "text"])
def test_prompts_are_completed(url: str, model: str) -> None:
    prompts = ["The capital of Spain is", "The capital of Italy is"]
    assert infer(url, model, *prompts) == [" Madrid.", " Rome."]
    assert infer(url, model, *prompts, stop=["Rome"], max_tokens=1) == [" Madrid", " "]
