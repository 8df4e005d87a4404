"""Which policy a model is loaded with, and that its configuration is checked once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel

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


def test_a_pyfunc_outside_a_server_is_as_a_native_load(saved: Path) -> None:
    with mlflow.pyfunc.load_model(str(saved)).get_raw_model() as model:
        assert engine_of(model) == ("GenAILoop", None)


def test_the_configuration_is_checked_once_a_load(demo: Path, saved: Path) -> None:
    once, loaded = CountedStops(["x"]), CountedStops(["x"])
    GenAIModel(demo, model_config={"stop": once}).close()
    mlflow_phi3_onnx.load_model(saved, model_config={"stop": loaded}).close()
    assert 0 < loaded.looks == once.looks
