"""One tracking store, one folder of deployments and one logged model for each file of tests.

Not for the package: without ``__init__.py`` pytest keeps such a fixture for the whole session, in
which tests of other rooms set another store.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import psutil
import pytest
from mlflow.deployments import get_deploy_client

import mlflow_phi3_onnx
from mlflow_phi3_onnx.deployments import OnnxGenAIDeploymentClient, target_help

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = "MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR"


@pytest.fixture(scope="module")
def deployable_model_uri(tracking_folder: Path) -> str:
    """A logged chat model."""
    assert tracking_folder == Path.cwd()
    info = mlflow_phi3_onnx.log_model(mlflow_phi3_onnx.demo_model_path(), name="demo")
    return info.model_uri


@pytest.fixture(scope="module")
def tracking_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that commands run in; its store is named by a URI relative to it."""
    folder = tmp_path_factory.mktemp("tracking")
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # A name of its own: MLflow keeps the stores of a process by their URIs.
        mlflow.set_tracking_uri(f"sqlite:///{folder.name}.db")
        yield folder
    mlflow.set_tracking_uri(before)  # pyright: ignore[reportArgumentType] - None means unset


@pytest.fixture(scope="module")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of deployments."""
    folder = tmp_path_factory.mktemp("user") / "state" / "deployments"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield folder
        client = OnnxGenAIDeploymentClient("onnx-genai")
        for deployment in client.list_deployments():
            client.delete_deployment(deployment["name"])
        left = _serving(folder)
    assert left == []


@pytest.fixture(scope="module")
def client(state_folder: Path) -> OnnxGenAIDeploymentClient:
    """The client, as MLflow hands it out."""
    found = get_deploy_client("onnx-genai")
    assert isinstance(found, OnnxGenAIDeploymentClient)
    assert str(state_folder) in target_help()
    return found


@pytest.fixture(scope="module")
def serving(state_folder: Path) -> Callable[[], list[int]]:
    """The pids of all server processes that these tests have started and that still run."""
    return lambda: _serving(state_folder)


@pytest.fixture(scope="module")
def command(state_folder: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts ``mlflow deployments <arguments>`` in an interpreter of its own."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow", "deployments", *arguments, "-t", "onnx-genai"],
            env={**os.environ, FOLDER: str(state_folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def until() -> Callable[[Callable[[], object]], None]:
    """Polls until something is true, and fails where it never is."""

    def poll(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    return poll


def _serving(state_folder: Path) -> list[int]:
    return sorted(
        process.pid for process in psutil.process_iter() if _serves(process, str(state_folder))
    )


def _serves(process: psutil.Process, state_folder: str) -> bool:
    try:
        return (
            process.environ().get(FOLDER) == state_folder
            and bool({"serve", "mlflow.pyfunc.scoring_server.app:app"} & {*process.cmdline()})
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, OSError):
        return False  # another user's, or gone
