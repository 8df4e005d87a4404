"""The deployment target through MLflow's command line, every command in its own process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from click.testing import CliRunner
from mlflow.cli import cli

from mlflow_phi3_onnx.deployments.arguments import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_phi3_onnx.deployments import OnnxGenAIDeploymentClient

pytestmark = pytest.mark.slow

REQUESTS = [{"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}]

FRESH = """
import sys
from mlflow.deployments import get_deploy_client

assert not [name for name in sys.modules if name.startswith("mlflow_phi3_onnx")]
client = get_deploy_client("onnx-genai")
assert not [name for name in sys.modules if name.startswith("onnxruntime")]
print(type(client).__name__, client.list_deployments())
"""


def output(process: subprocess.Popen[str], code: int = 0) -> str:
    text = process.communicate(timeout=120)[0]
    assert process.returncode == code, text
    return text


def test_a_fresh_interpreter_finds_the_target_through_mlflow_alone(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    empty = {"MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR": str(tmp_path / "none")}
    helping = command("help", **empty)
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH],
        cwd=tmp_path,
        env={**os.environ, **empty},
        capture_output=True,
        text=True,
        check=False,
    )

    assert fresh.stdout.strip() == "OnnxGenAIDeploymentClient []", fresh.stderr
    text = output(helping)
    assert all(f"  {name} " in text for name in OPTIONS)
    assert "onnx-genai:/" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "--name", "none"), "Error: There is no deployment 'none'"),
        (("create", "--name", "a/b", "-m", "models:/x/1"), "Error: "),
        (("create", "--name", "x", "-m", "models:/x/1", "-C", "port=x"), "Error: .*port must be"),
        (("create", "--name", "x", "-m", "models:/x/1"), "Error: The model .* Expected models:/"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    client: OnnxGenAIDeploymentClient, arguments: tuple[str, ...], says: str
) -> None:
    name, *rest = arguments
    done = CliRunner().invoke(cli, ["deployments", name, "-t", client.target_uri, *rest])
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert re.match(says, line), done.output
    assert "Traceback" not in done.output


def test_every_command_finds_the_deployment_that_another_made(
    command: Callable[..., subprocess.Popen[str]],
    serving: Callable[[], list[int]],
    client: OnnxGenAIDeploymentClient,
    deployable_model_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output(command("create", "--name", "by-cli", "-m", deployable_model_uri))
    first = serving()
    assert len(first) == 1

    # Nothing of the first command's context is left: not its folder, not its tracking store.
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps(REQUESTS))
    listing = command("list")
    getting = command("get", "--name", "by-cli")
    predicting = command("predict", "--name", "by-cli", "-I", str(requests))
    assert "'by-cli'" in output(listing)
    described = dict(line.split(": ", 1) for line in output(getting).strip().splitlines())
    assert described["status"] == "running"
    assert described["model_uri"] == deployable_model_uri
    assert int(described["pid"]) in first
    (answer,) = json.loads(output(predicting).splitlines()[-1])["predictions"]
    assert answer["object"] == "chat.completion"

    config = 'model_config={"max_tokens": 2}'
    assert "is updated" in output(command("update", "--name", "by-cli", "-C", config))
    (answer,) = client.predict("by-cli", REQUESTS)["predictions"]
    assert answer["usage"]["completion_tokens"] == 2
    second = serving()
    assert len(second) == 1
    assert not {*first} & {*second}

    output(command("delete", "--name", "by-cli"))
    assert serving() == []


@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_while_the_server_starts_leaves_nothing(
    command: Callable[..., subprocess.Popen[str]],
    serving: Callable[[], list[int]],
    until: Callable[[Callable[[], object]], None],
    deployable_model_uri: str,
    state_folder: Path,
) -> None:
    before = serving()
    record = state_folder / "interrupted" / "record.json"
    creating = command("create", "--name", "interrupted", "-m", deployable_model_uri)
    until(lambda: record.exists() or creating.poll() is not None)
    assert creating.poll() is None, output(creating)
    server = json.loads(record.read_text())["process"]["pid"]
    assert psutil.pid_exists(server)

    creating.send_signal(signal.SIGINT)

    output(creating, code=1)
    assert serving() == before
    assert not record.exists()
