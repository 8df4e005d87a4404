"""Which policy a model is loaded with, and that its configuration is checked once."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.flavor.serving import enter_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class CountedStops(list[str]):
    """Stop sequences that count how often they are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        self.looks += 1
        return super().__iter__()


def engine_of(model: GenAIModel) -> tuple[str, float | None]:
    engine: Any = model._engine  # type: ignore[attr-defined] - what the policy decided
    return type(engine._loop).__name__, engine._longest


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a process of MLflow's scoring server."""
    monkeypatch.setenv("__pyfunc_model_path__", "x")
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "7")


@pytest.mark.usefixtures("served")
def test_a_served_pyfunc_takes_the_fitting_loop_and_the_server_s_deadline(saved: Path) -> None:
    with mlflow.pyfunc.load_model(str(saved)).get_raw_model() as model:
        assert engine_of(model) == ("SlotsLoop", 7.0)


@pytest.mark.usefixtures("served")
def test_a_native_load_in_a_served_process_is_as_everywhere(saved: Path) -> None:
    with mlflow_phi3_onnx.load_model(saved) as model:
        assert engine_of(model) == ("GenAILoop", None)


@pytest.mark.usefixtures("served")
def test_a_server_shows_the_log_unless_somebody_has_said_how(
    saved: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, root = logging.getLogger("mlflow_phi3_onnx"), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    with mlflow.pyfunc.load_model(str(saved)).get_raw_model():
        assert len(logger.handlers) == 1
    shown = capfd.readouterr().err
    assert re.search(r" INFO mlflow_phi3_onnx\.model\.start: Loaded phi3 in \d", shown)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
    mlflow.pyfunc.load_model(str(saved)).get_raw_model().close()
    assert logger.handlers == []


WORKERS = [
    (["uvicorn", "--host", "x", "--workers", "3", "app"], 3),
    (["python", "/bin/uvicorn", "--workers", "2", "app"], 2),
    (["uvicorn", "app"], 1),
    (["gunicorn", "--workers", "3"], 1),
    (["uvicorn", "--workers"], 1),
    (["uvicorn", "--workers", "x"], 1),
]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("line", "processes"), WORKERS)
def test_worker_processes_share_the_machine(
    monkeypatch: pytest.MonkeyPatch, line: list[str], processes: int
) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: line)
    assert enter_server().processes == processes


def test_threads_and_memory_are_divided_among_processes_and_memory_among_models(
    demo: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_phi3_onnx.model.start.available_threads", lambda: 6)
    monkeypatch.setattr("mlflow_phi3_onnx.model.start.available_memory", lambda: 6 << 30)
    caplog.set_level(logging.INFO, "mlflow_phi3_onnx")
    for processes, models, threads, size in (
        (1, 1, 6, 3 << 30),
        (3, 1, 2, 1 << 30),
        (7, 1, 1, (6 << 30) / 14),
        (1, 4, 6, (6 << 30) / 8),
    ):
        caplog.clear()
        GenAIModel(demo, policy=ServingPolicy(processes=processes, models=models)).close()
        told = re.search(r"(\d+) threads, KV cache of .* \(([\d,]+) bytes\)", caplog.text)
        assert told is not None
        per_token = read_folder(demo).kv_bytes_per_token
        assert int(told[1]) == threads
        assert int(told[2].replace(",", "")) == int(size // per_token) * per_token


def test_a_pyfunc_outside_a_server_is_as_a_native_load(saved: Path) -> None:
    with mlflow.pyfunc.load_model(str(saved)).get_raw_model() as model:
        assert engine_of(model) == ("GenAILoop", None)


def test_the_configuration_is_checked_once_a_load(demo: Path, saved: Path) -> None:
    once, loaded = CountedStops(["x"]), CountedStops(["x"])
    GenAIModel(demo, model_config={"stop": once}).close()
    mlflow_phi3_onnx.load_model(saved, model_config={"stop": loaded}).close()
    assert 0 < loaded.looks == once.looks
