"""The deployment target through MLflow's Python client, with real servers."""

from __future__ import annotations

import json
import socket
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pandas as pd
import psutil
import pytest
from mlflow.deployments import PredictionsResponse, get_deploy_client, interface
from mlflow.exceptions import MlflowException
from mlflow.metrics import exact_match
from mlflow.metrics.genai import make_genai_metric
from mlflow.metrics.genai.model_utils import score_model_on_payload
from mlflow.models import evaluate

from mlflow_phi3_onnx.deployments import OnnxGenAIDeploymentClient
from mlflow_phi3_onnx.deployments.arguments import make_recipe
from mlflow_phi3_onnx.errors import (
    DeploymentError,
    InvalidModelError,
    InvalidRequestError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of Spain?"
MADRID = "The capital of Spain is Madrid."
REQUEST = {"messages": [{"role": "user", "content": QUESTION}]}
BROKEN = """
flavors:
  python_function:
    loader_module: a_module_that_nobody_has
    python_version: 3.10.0
"""


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    return unused_port()


@pytest.fixture(scope="module")
def race(
    client: OnnxGenAIDeploymentClient, deployable_model_uri: str, port: int
) -> list[dict[str, Any] | MlflowException]:
    """What two commands get that create a deployment of the same name at once."""

    def create(_: int) -> dict[str, Any] | MlflowException:
        try:
            return client.create_deployment("shared", deployable_model_uri, config={"port": port})
        except MlflowException as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(create, range(2)))


@pytest.fixture
def deployment(
    client: OnnxGenAIDeploymentClient, race: list[dict[str, Any] | MlflowException]
) -> dict[str, Any]:
    """A running deployment that the tests of this file share."""
    assert len(race) == 2
    return client.get_deployment("shared")


@pytest.fixture
def broken_model(tmp_path: Path) -> str:
    """A model that passes for one until a server loads it."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "MLmodel").write_text(BROKEN)
    return str(folder)


def test_of_two_creates_at_once_one_wins(
    race: list[dict[str, Any] | MlflowException], serving: Callable[[], list[int]], port: int
) -> None:
    (lost,) = (outcome for outcome in race if isinstance(outcome, MlflowException))
    (won,) = (outcome for outcome in race if not isinstance(outcome, MlflowException))
    assert lost.error_code in {"RESOURCE_CONFLICT", "RESOURCE_ALREADY_EXISTS"}
    assert won["url"] == f"http://127.0.0.1:{port}"
    assert won["pid"] in serving()


def test_a_deployment_is_described_the_same_everywhere(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any], deployable_model_uri: str
) -> None:
    assert deployment == {
        "name": "shared",
        "status": "running",
        "model_uri": deployable_model_uri,
        "flavor": deployment["flavor"],
        "url": f"http://127.0.0.1:{deployment['port']}",
        "host": "127.0.0.1",
        "port": deployment["port"],
        "pid": deployment["pid"],
        "config": {"port": deployment["port"]},
        "created": deployment["created"],
        "started": deployment["started"],
        "log": deployment["log"],
    }
    assert deployment["flavor"] in {"python_function", "mlflow_phi3_onnx"}
    assert deployment in client.list_deployments()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_what_is_on_disk_is_private(deployment: dict[str, Any]) -> None:
    folder = Path(deployment["log"]).parent
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"record.json": 0o600, Path(deployment["log"]).name: 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "inputs",
    [
        REQUEST,
        {"dataframe_records": [REQUEST]},
        {"dataframe_split": {"columns": ["messages"], "data": [[REQUEST["messages"]]]}},
        [REQUEST],
        pd.DataFrame([REQUEST]),
        pd.DataFrame(REQUEST),  # as pandas reads the request from a file
    ],
    ids=["request", "records", "split", "list", "frame", "flattened"],
)
def test_every_form_of_a_request_gets_its_answer(
    client: OnnxGenAIDeploymentClient,
    deployment: dict[str, Any],
    inputs: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not for a server of this machine

    response = client.predict(deployment["name"], inputs)

    assert isinstance(response, PredictionsResponse)
    assert [answer["object"] for answer in response["predictions"]] == ["chat.completion"]
    assert json.loads(response.to_json() or "") == response
    assert response.get_predictions()["object"].tolist() == ["chat.completion"]


def test_a_refusal_is_the_servers_own_without_the_inputs(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any]
) -> None:
    with pytest.raises(MlflowException, match="messages") as caught:
        client.predict(deployment["name"], {"prompt": QUESTION})
    assert caught.value.error_code in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
    assert caught.value.get_http_status_code() == 400
    assert QUESTION not in str(caught.value)


def test_it_streams(
    client: OnnxGenAIDeploymentClient,
    deployment: dict[str, Any],
    until: Callable[[Callable[[], object]], None],
) -> None:
    name = deployment["name"]
    for fields in ({}, {"stream": True}, {"stream": False}):
        *chunks, last = client.predict_stream(name, {**REQUEST, **fields})
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == MADRID
        assert (last["object"], last["model"]) == ("chat.completion.chunk", "shared")
        assert last["choices"][0]["finish_reason"] == "stop"
    left = client.predict_stream(endpoint=name, inputs={**REQUEST, "min_tokens": 4000})
    assert next(left)["choices"][0]["delta"]["role"] == "assistant"
    left.close()
    until(lambda: 'requests_cancelled_total{model_name="shared"} 1.0' in metrics(deployment))


def metrics(deployment: dict[str, Any]) -> str:
    with urlopen(f"{deployment['url']}/metrics") as response:
        return response.read().decode()


def test_a_stream_is_refused_as_a_whole_answer_is(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any]
) -> None:
    name = deployment["name"]
    with pytest.raises(InvalidRequestError, match="temperature must be") as caught:
        next(client.predict_stream(name, {**REQUEST, "temperature": 9}))
    assert caught.value.param == "temperature"
    with pytest.raises(UnsupportedParameterError, match="predict_stream"):
        client.predict(name, {**REQUEST, "stream": True})
    for call in (client.predict_stream, lambda name, rows: client.predict(None, rows, name)):
        with pytest.raises(InvalidRequestError, match="must be one request"):
            call(name, [REQUEST])


def test_a_deployment_is_an_endpoint(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any], deployable_model_uri: str
) -> None:
    endpoint: Any = client.get_endpoint("shared")
    assert endpoint == {
        "name": "shared",
        "task": "llm/v1/chat",
        "endpoint_type": "llm/v1/chat",
        "model": {"name": deployable_model_uri, "provider": "onnx-genai"},
        "endpoint_url": f"{deployment['url']}/endpoints/shared/invocations",
        "limit": None,
    }
    assert endpoint.endpoint_type == "llm/v1/chat"  # as one of MLflow's judges reads it
    assert client.list_endpoints() == [endpoint]
    answer = client.predict(inputs={**REQUEST, "max_tokens": 20}, endpoint="shared")
    assert (answer["object"], answer["model"]) == ("chat.completion", "shared")
    assert answer["choices"][0]["message"]["content"] == MADRID
    with pytest.raises(InvalidRequestError, match="The server answered 400: top_p") as caught:
        client.predict(inputs={**REQUEST, "top_p": 7}, endpoint="shared")
    assert caught.value.param == "top_p"


@pytest.mark.filterwarnings("ignore")  # MLflow's own
@pytest.mark.usefixtures("deployment")
def test_mlflow_evaluates_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", "onnx-genai")
    asked = [QUESTION, "What is the capital of Peru?"]
    data = pd.DataFrame({"inputs": asked, "truth": [MADRID, "nothing like it"]})
    result = evaluate(
        model="endpoints:/shared", data=data, targets="truth",
        inference_params={"max_tokens": 20}, extra_metrics=[exact_match()],
    )  # fmt: skip
    assert result.metrics["exact_match/v1"] == 0.5


@pytest.mark.filterwarnings("ignore")  # MLflow's own
@pytest.mark.usefixtures("deployment")
def test_mlflow_s_judges_ask_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model is no judge, so that it is told what to say."""
    monkeypatch.setenv("MLFLOW_DEPLOYMENTS_TARGET", "onnx-genai")
    said = score_model_on_payload("endpoints:/shared", QUESTION, {"max_tokens": 20})
    assert said == MADRID
    verdict = {"choice": ["score: 4\njustification: It is."], "max_tokens": 50}
    metric: Any = make_genai_metric(
        name="right", definition="Whether it is right.", grading_prompt="4 if so.",
        model="endpoints:/shared", parameters=verdict,
    )  # fmt: skip
    judged = metric(predictions=pd.Series([MADRID]), inputs=pd.Series([QUESTION]))
    assert (judged.scores, judged.justifications) == ([4], ["It is."])


def test_a_name_in_use_is_refused(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any], deployable_model_uri: str
) -> None:
    with pytest.raises(DeploymentError, match="already exists \\(running\\)") as caught:
        client.create_deployment("shared", deployable_model_uri)
    assert caught.value.error_code == "RESOURCE_ALREADY_EXISTS"
    assert client.get_deployment("shared") == deployment


def test_a_port_in_use_is_refused(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any], deployable_model_uri: str
) -> None:
    with pytest.raises(DeploymentError, match=f"port {deployment['port']} .*already in use"):
        client.create_deployment(
            "other", deployable_model_uri, config={"port": str(deployment["port"])}
        )
    assert "other" not in [each["name"] for each in client.list_deployments()]


def test_unknown_deployments_are_named(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any]
) -> None:
    for call in (
        client.get_deployment,
        client.update_deployment,
        lambda name: client.predict(name, REQUEST),
    ):
        with pytest.raises(DeploymentError, match=r"'nobody'.*shared") as caught:
            call("nobody")
        assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    client.delete_deployment("nobody")
    assert deployment["status"] == "running"


def test_a_server_that_does_not_answer_is_unresponsive(
    client: OnnxGenAIDeploymentClient, deployment: dict[str, Any]
) -> None:
    server = psutil.Process(deployment["pid"])
    server.suspend()
    try:
        assert client.get_deployment("shared")["status"] == "unresponsive"
    finally:
        server.resume()
    assert client.get_deployment("shared")["status"] == "running"


@pytest.mark.parametrize(
    ("model_config", "says"),
    [
        ({"max_token": 3}, "max_token is not a parameter of llm/v1/chat. Did you mean max_tokens?"),
        (
            {"loop": "slot"},
            "loop must be one of auto, genai, slots; got 'slot'. Did you mean slots?",
        ),
    ],
)
def test_a_model_config_is_checked_before_a_server_is_started(
    client: OnnxGenAIDeploymentClient,
    deployable_model_uri: str,
    deployment: dict[str, Any],
    state_folder: Path,
    model_config: dict[str, Any],
    says: str,
) -> None:
    config = {"model_config": model_config}
    with pytest.raises(InvalidRequestError) as caught:
        client.create_deployment("bad", deployable_model_uri, config=config)
    assert caught.value.message == f"model_config: {says}"
    assert not (state_folder / "bad").exists()
    logs = sorted(Path(deployment["log"]).parent.iterdir())
    for changed in (None, deployable_model_uri):
        with pytest.raises(InvalidRequestError, match=r"^model_config: "):
            client.update_deployment(deployment["name"], changed, config=config)
    assert client.get_deployment(deployment["name"])["pid"] == deployment["pid"]
    assert sorted(Path(deployment["log"]).parent.iterdir()) == logs


def test_an_update_that_fails_gives_the_old_server_back_its_port(
    client: OnnxGenAIDeploymentClient,
    deployment: dict[str, Any],
    broken_model: str,
    serving: Callable[[], list[int]],
) -> None:
    with pytest.raises(DeploymentError, match=r"within 0\.2 s"):
        client.update_deployment("shared", broken_model, config={"startup_timeout": "0.2"})

    now = client.get_deployment("shared")
    assert now["status"] == "running"
    assert now["pid"] != deployment["pid"]
    assert {key: now[key] for key in ("port", "config", "model_uri", "created")} == {
        key: deployment[key] for key in ("port", "config", "model_uri", "created")
    }
    assert serving() == [now["pid"]]


def test_a_killed_server_is_dead_until_it_is_deleted(
    client: OnnxGenAIDeploymentClient,
    deployment: dict[str, Any],
    deployable_model_uri: str,
    serving: Callable[[], list[int]],
    until: Callable[[Callable[[], object]], None],
) -> None:
    current = client.get_deployment("shared")
    psutil.Process(current["pid"]).kill()
    until(lambda: client.get_deployment("shared")["status"] == "dead")
    until(lambda: not psutil.pid_exists(current["pid"]))  # no zombie of this process is left

    with pytest.raises(DeploymentError, match=r"dead.*mlflow deployments update") as caught:
        client.predict("shared", REQUEST)
    assert QUESTION not in str(caught.value)
    with pytest.raises(DeploymentError, match="already exists \\(dead\\)"):
        client.create_deployment("shared", deployable_model_uri)

    client.delete_deployment("shared")
    assert serving() == []
    assert client.list_deployments() == []
    assert not Path(deployment["log"]).parent.exists()


def test_a_server_that_fails_leaves_its_log_and_nothing_else(
    client: OnnxGenAIDeploymentClient,
    serving: Callable[[], list[int]],
    broken_model: str,
    state_folder: Path,
) -> None:
    with pytest.raises(DeploymentError, match=r"exit code 1.*\n(.*\n)*ModuleNotFound") as caught:
        client.create_deployment("broken", broken_model)
    (log,) = (state_folder / "broken").iterdir()
    assert str(log) in str(caught.value)
    assert "a_module_that_nobody_has" in log.read_text()
    assert client.list_deployments() == []
    assert serving() == []
    client.delete_deployment("broken")
    assert not log.exists()


def test_a_server_with_keys_is_asked_with_one(
    client: OnnxGenAIDeploymentClient, deployable_model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_API_KEY", "sk-abcdefgh sk-ijklmnop")
    assert client.create_deployment("locked", deployable_model_uri)["status"] == "running"
    (answer,) = client.predict("locked", {**REQUEST, "max_tokens": 1})["predictions"]
    assert answer["usage"]["completion_tokens"] == 1
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_API_KEY", "sk-ijklmnop")
    assert next(client.predict_stream("locked", REQUEST))["model"] == "locked"
    monkeypatch.delenv("MLFLOW_PHI3_ONNX_API_KEY")
    with pytest.raises(MlflowException, match="answered 401"):
        client.predict("locked", REQUEST)
    client.delete_deployment("locked")


def test_run_local_creates_a_deployment(
    client: OnnxGenAIDeploymentClient,
    broken_model: str,
    serving: Callable[[], list[int]],
) -> None:
    with pytest.raises(DeploymentError, match=r"within 0\.2 s"):
        interface.run_local("onnx-genai", "local", broken_model, config={"startup_timeout": "0.2"})
    assert client.list_deployments() == []
    assert serving() == []


def test_run_local_says_where_it_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"name": "local", "url": "http://127.0.0.1:5001"}
    monkeypatch.setattr(OnnxGenAIDeploymentClient, "create_deployment", lambda *_: made)
    interface.run_local("onnx-genai", "local", "models:/m-1")
    assert "http://127.0.0.1:5001/invocations" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "..", "a b", "x" * 64, "a\n"])
def test_bad_names_are_refused(client: OnnxGenAIDeploymentClient, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name") as caught:
        client.create_deployment(name, "models:/m-1")
    assert caught.value.param == "name"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"prot": 1},
            "config: prot is not a key.*host, port, startup_timeout, workers, timeout",
        ),
        ({"port": "http"}, "config: port must be an integer from 1 to 65535; got 'http'"),
        ({"port": 0}, "port must be .*; got 0"),
        ({"port": True}, "port must be"),
        ({"port": "65536"}, "port must be .*; got 65536"),
        ({"workers": "0"}, "workers must be an integer from 1; got 0"),
        ({"workers": 1.5}, "workers must be"),
        ({"timeout": "1.5"}, "timeout must be"),
        ({"startup_timeout": "nan"}, "startup_timeout must be a number above 0"),
        ({"startup_timeout": -1}, "startup_timeout must be"),
        ({"env_manager": "poetry"}, "env_manager must be one of local, virtualenv, uv, conda"),
        (
            {"model_config": "[1]"},
            "model_config must be an object with string keys and JSON values; got \\[1\\]",
        ),
        ({"model_config": "{loop: 1}"}, r"JSON values; got '\{loop: 1\}'\."),
        ({"model_config": {"a": object()}}, "model_config must be .*; got {'a': <object"),
        ({"env_manager": "loca"}, "conda; got 'loca'. Did you mean local?"),
        ({"host": 7}, "host must be a string that is not blank; got 7"),
        ([], "config must be a mapping; got a list"),
    ],
)
def test_bad_config_is_refused(
    client: OnnxGenAIDeploymentClient, config: Any, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        client.create_deployment("bad", "models:/m-1", config=config)


def test_this_package_s_server_is_one_process(
    client: OnnxGenAIDeploymentClient, deployable_model_uri: str
) -> None:
    with pytest.raises(UnsupportedParameterError, match="one process") as caught:
        client.create_deployment("bad", deployable_model_uri, config={"workers": "2"})
    assert caught.value.param == "workers"
    recipe = make_recipe(deployable_model_uri, None, {"workers": 1})
    assert recipe.config == {"workers": 1}
    other = {"workers": 2, "env_manager": "uv"}
    assert make_recipe(deployable_model_uri, None, other).config == other


def test_another_environment_checks_its_model_config_itself(deployable_model_uri: str) -> None:
    config = {"env_manager": "virtualenv", "model_config": {"of_a_later_version": 1}}
    assert make_recipe(deployable_model_uri, None, config).config == config


def test_a_host_of_another_machine_is_refused(
    client: OnnxGenAIDeploymentClient, deployable_model_uri: str
) -> None:
    with pytest.raises(DeploymentError, match=r"cannot listen on host '192\.0\.2\.1'"):
        client.create_deployment("bad", deployable_model_uri, config={"host": "192.0.2.1"})


def test_models_that_cannot_be_served_are_refused(
    client: OnnxGenAIDeploymentClient, deployable_model_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidModelError, match="m-nobody") as caught:
        client.create_deployment("bad", "models:/m-nobody")
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(InvalidModelError, match="cannot be read"):
        client.create_deployment("bad", str(tmp_path))
    (tmp_path / "MLmodel").write_text("flavors:\n  onnx: {}\n")
    with pytest.raises(InvalidModelError, match="no flavor 'python_function'; it has: onnx"):
        client.create_deployment("bad", str(tmp_path))
    (tmp_path / "MLmodel").write_text(BROKEN)
    with pytest.raises(InvalidModelError, match="no flavor 'mlflow_phi3_onnx'"):
        client.create_deployment("bad", str(tmp_path), flavor="mlflow_phi3_onnx")
    with pytest.raises(InvalidRequestError, match="'sklearn'"):
        client.create_deployment("bad", deployable_model_uri, flavor="sklearn")
    with pytest.raises(InvalidRequestError, match="model_uri"):
        client.create_deployment("bad", "")


def test_what_the_target_has_not_is_refused(client: OnnxGenAIDeploymentClient) -> None:
    for call in (
        lambda: client.create_deployment("a", "models:/m-1", endpoint="e"),
        lambda: client.update_deployment("a", endpoint="e"),
        lambda: client.delete_deployment("a", endpoint="e"),
        lambda: client.list_deployments(endpoint="e"),
        lambda: client.get_deployment("a", endpoint="e"),
        lambda: client.predict("a", REQUEST, endpoint="e"),
        lambda: client.predict_stream("a", REQUEST, endpoint="e"),
    ):
        with pytest.raises(UnsupportedParameterError, match="endpoint"):
            call()
    with pytest.raises(UnsupportedParameterError, match="config"):
        client.delete_deployment("a", config={"port": "1"})
    with pytest.raises(InvalidRequestError, match="model_uri"):
        client.update_deployment("a", flavor="python_function")
    with pytest.raises(InvalidRequestError, match="deployment name"):
        client.predict(inputs=REQUEST)


@pytest.mark.parametrize("target", ["onnx-genai:/", "onnx-genai://local"])
def test_targets_that_mean_this_machine(target: str, client: OnnxGenAIDeploymentClient) -> None:
    other = get_deploy_client(target)
    assert isinstance(other, OnnxGenAIDeploymentClient)
    assert other.list_deployments() == client.list_deployments()


@pytest.mark.parametrize("target", ["onnx-genai:/a", "onnx-genai://gpu-box", "onnx-genai:/?a=1"])
def test_targets_that_mean_more_are_refused(target: str) -> None:
    with pytest.raises(InvalidRequestError, match="always on this machine"):
        get_deploy_client(target)
