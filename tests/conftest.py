"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from typing import TYPE_CHECKING

import mlflow
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.doors import REPORTED, Answer, whole_chat
from tests.support.table import SAME

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _loggers() -> Iterator[None]:
    """Servers in this process set up its logs, which the next module's tests look at."""
    names = ("mlflow_phi3_onnx", "mlflow_phi3_onnx.model.watch", "uvicorn", "uvicorn.error")
    loggers = [logging.getLogger(name) for name in (*names, "asyncio")]
    before = [(one.handlers[:], one.propagate, one.level) for one in loggers]
    yield
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo model's folder."""
    return Path(mlflow_phi3_onnx.demo_model_path())


@pytest.fixture(scope="session")
def tokenizer(demo: Path) -> PromptTokenizer:
    """The demo model's tokenizer."""
    return PromptTokenizer(demo)


@pytest.fixture(scope="session", params=["genai", "slots"])
def loop(request: pytest.FixtureRequest) -> str:
    """Each loop in turn: what is above them is the same for both."""
    return request.param


@pytest.fixture(scope="session")
def model(demo: Path, loop: str) -> Iterator[GenAIModel]:
    """The demo model, loaded once for all tests that do not change it."""
    with GenAIModel(demo, model_config={"loop": loop}) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def references(demo: Path) -> list[Answer]:
    """What the genai loop answers natively to each request of SAME, one after the other."""
    with GenAIModel(demo, model_config={"prefix_cache": False}) as model:
        return [whole_chat(model.chat(**fields, **REPORTED)) for fields in SAME]


@pytest.fixture(scope="session")
def _database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take a second to make."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.search_experiments()
    mlflow.set_tracking_uri(before)
    return path


@pytest.fixture
def tracking(tmp_path: Path, _database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh MLflow store in tmp_path, for tracking and registry; returns its URI."""
    database = tmp_path / "mlflow.db"
    shutil.copy(_database, database)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        # An experiment's artifacts lie where its database was made; those of a copy lie beside it.
        artifacts = str(tmp_path / "artifacts")
        connection.execute("UPDATE experiments SET artifact_location = ?", (artifacts,))
    uri = f"sqlite:///{database}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] - None restores the default
    mlflow.set_registry_uri(None)  # type: ignore[arg-type] - None restores the default
    os.environ.pop("MLFLOW_REGISTRY_URI", None)  # MLflow sets it, and leaves it


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """Takes back that Ctrl-C is ignored, as it is in the background jobs of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
