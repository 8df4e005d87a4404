"""examples/azureml, as far as it can be tried without Azure."""

from __future__ import annotations

import importlib
import importlib.util
import json
import runpy
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from packaging.requirements import Requirement

from benchmarks.serving import HTTP, free_port, running
from mlflow_phi3_onnx import save_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.azure,
    pytest.mark.skipif(
        importlib.util.find_spec("azureml_inference_server_http") is None,
        reason="needs the azure extra",
    ),
]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "azureml"
CANARY = "canary-1618033"

# A clone is on the path of this interpreter: without it, there is only the copy in the model.
WITHOUT_PACKAGE = f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]"


def ask(country: str = "Spain", **fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": f"What is the capital of {country}?"}
    return {"messages": [message], **fields}


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "deployment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def endpoint(
    demo: Path, deployment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The example's script in Azure's server, with the demo model; its URL and its log."""
    folder = tmp_path_factory.mktemp("azure")
    save_model(demo, folder / "models" / "phi3" / "1" / "model")
    (folder / "sitecustomize.py").write_text(WITHOUT_PACKAGE, encoding="utf-8")
    command = ["azmlinfsrv", "--port", "{port}", "--health_port", str(free_port())]
    command += ["--entry_script", str(FOLDER / "score.py")]
    command += ["--model_dir", str(folder / "models" / "phi3" / "1")]
    environment = {**deployment["environment_variables"], "PYTHONPATH": str(folder)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the script stays the only file beside it
    with running(command, "/", folder, **environment) as served:
        yield served


def post(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with HTTP.open(urllib.request.Request(f"{url}/score", body), timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def content(message: dict[str, Any]) -> str:
    return message.get("content", "")


def test_eight_clients_at_once_get_their_own_answers(endpoint: tuple[str, Path]) -> None:
    url, _ = endpoint
    capitals = {"Spain": "Madrid", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
    countries = list(capitals) * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda c: post(url, json.dumps(ask(c)).encode()), countries))
    assert [(status, content(body["choices"][0]["message"])) for status, body in answers] == [
        (200, f"The capital of {country} is {capitals[country]}.") for country in countries
    ]


@pytest.mark.parametrize(
    ("fields", "written"),
    [(ask(), "The capital of"), ({"prompt": "The capital of Spain is"}, " Madrid.")],
)
def test_a_stream_is_server_sent_events(
    endpoint: tuple[str, Path], fields: dict[str, Any], written: str
) -> None:
    url, _ = endpoint
    body = json.dumps({**fields, "stream": True, "max_tokens": 3}).encode()
    with HTTP.open(urllib.request.Request(f"{url}/score", body), timeout=60) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        *events, done, end = response.read().decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = [choice["text"] if "text" in choice else content(choice["delta"]) for choice in choices]
    assert len(texts) > 2
    assert "".join(texts) == written


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages": [', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b"[1]", None),
        (b"", None),
        (b"{}", "prompt"),
        (json.dumps(ask(temperature=9)).encode(), "temperature"),
        (json.dumps(ask(temperature=9, stream=True)).encode(), "temperature"),
        (json.dumps(ask(no_such=CANARY)).encode(), "no_such"),
        (json.dumps(ask(CANARY, max_tokens=9999)).encode(), "max_tokens"),
        (json.dumps({"messages": [{"role": "king", "content": CANARY}]}).encode(), "messages[0]"),
    ],
)
def test_what_is_no_request_is_refused_as_openai_does(
    endpoint: tuple[str, Path], body: bytes, param: str | None
) -> None:
    url, log = endpoint
    status, answer = post(url, body)
    assert status == 400
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert (answer["error"]["param"] or "").startswith(param or "")
    assert CANARY not in log.read_text(encoding="utf-8")
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own code
def test_azures_own_tools_read_the_yaml(deployment: dict[str, Any]) -> None:
    sdk = importlib.import_module("azure.ai.ml")
    endpoint = sdk.load_online_endpoint(FOLDER / "endpoint.yml")
    loaded = sdk.load_online_deployment(FOLDER / "deployment.yml")
    assert loaded.endpoint_name == endpoint.name
    assert (FOLDER / loaded.code_configuration.scoring_script).is_file()
    threads = deployment["environment_variables"]["GUNICORN_CMD_ARGS"].removeprefix("--threads ")
    assert loaded.request_settings.max_concurrent_requests_per_instance == int(threads)
    script = runpy.run_path(str(FOLDER / "score.py"))
    assert loaded.request_settings.request_timeout_ms == 1000 * script["TIMEOUT"]


def test_the_environment_has_what_the_package_needs() -> None:
    here = {"python_version": "3.11", "extra": ""}
    needed = [Requirement(text) for text in requires("mlflow-phi3-onnx") or ()]
    environment = yaml.safe_load((FOLDER / "conda.yml").read_text(encoding="utf-8"))
    python, _, packages = environment["dependencies"]
    assert python == "python=3.11"
    listed = {text.name: text.specifier for text in map(Requirement, packages["pip"])}
    for package in needed:
        if package.marker is None or package.marker.evaluate(here):
            assert listed.get(package.name) == package.specifier, package.name
