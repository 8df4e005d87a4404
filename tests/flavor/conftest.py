"""Saved models and an MLflow store that the tests in here share; none of them changes either."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel

FreshPython = Callable[..., str]


@pytest.fixture(autouse=True)
def _python_path(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - autouse
    """Takes back what pyfunc does to the search path when a model comes with code."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="session")
def saved(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, saved as a chat model."""
    path = tmp_path_factory.mktemp("saved") / "chat"
    mlflow_phi3_onnx.save_model(demo, path, model_config={"temperature": 0})
    return path


@pytest.fixture(scope="session")
def saved_text(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, saved for text generation."""
    path = tmp_path_factory.mktemp("saved") / "text"
    mlflow_phi3_onnx.save_model(demo, path, task="text-generation")
    return path


@pytest.fixture(scope="module")
def store(_store: Path) -> Iterator[MlflowClient]:
    """One MLflow store for all modules, in force while a module runs."""
    uri = f"sqlite:///{_store / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        yield MlflowClient()
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type] - None restores the default
        mlflow.set_registry_uri(None)  # type: ignore[arg-type] - None restores the default
        os.environ.pop("MLFLOW_REGISTRY_URI", None)  # MLflow sets it, and leaves it


@pytest.fixture(scope="session")
def _store(tmp_path_factory: pytest.TempPathFactory, _database: Path) -> Path:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(_database, folder / "mlflow.db")
    database = sqlite3.connect(folder / "mlflow.db")
    # An experiment's artifacts lie where its database was made; those of a copy lie beside it.
    database.execute("UPDATE experiments SET artifact_location = ?", (str(folder / "artifacts"),))
    database.commit()
    database.close()
    return folder


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> FreshPython:
    """Runs code in an interpreter of its own, in an empty folder, and returns what it prints.

    It finds this package where this process does, unless ``package`` is False: then only an
    installed one.
    """
    root = str(Path(mlflow_phi3_onnx.__file__).parents[1])

    def run(code: str, *arguments: object, package: bool = True, **environment: str) -> str:
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if package:
            clean["PYTHONPATH"] = root
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path_factory.mktemp("empty"),
            env={**clean, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def question() -> str:
    """Something to ask the demo model."""
    return "What is the capital of Spain?"


@pytest.fixture(scope="session")
def native(demo: Path) -> Iterator[GenAIModel]:
    """The model before it is saved, in the loop that a saved one is loaded with."""
    with GenAIModel(demo) as model:
        yield model


@pytest.fixture(scope="session")
def answer(native: GenAIModel, question: str) -> str:
    """The first six tokens of what it answers to the question."""
    messages = [{"role": "user", "content": question}]
    return native.chat(messages, temperature=0, max_tokens=6)["choices"][0]["message"]["content"]
