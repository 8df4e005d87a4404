"""The arguments of ``autolog``, and how it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.tracing
import pytest
from mlflow.utils.autologging_utils import disable_autologging

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.model.observers import observe, stop_observing
from tests.support.doors import ONE_LOOP
from tests.support.traces import all_traces, only_trace

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.model.planned import Asked, PlannedRequest

pytestmark = pytest.mark.usefixtures("traced")


def ask(model: GenAIModel) -> None:
    model.generate("Once", max_tokens=2)
    list(model.stream_generate("Once", max_tokens=2))
    with pytest.raises(InvalidRequestError):
        model.generate("Once", max_tokens=-1)


@ONE_LOOP
@pytest.mark.parametrize("off", [{"disable": True}, {"log_traces": False}])
def test_it_can_be_turned_off(model: GenAIModel, off: dict[str, bool]) -> None:
    mlflow_phi3_onnx.autolog(**off)
    ask(model)
    assert all_traces() == []
    mlflow_phi3_onnx.autolog()
    ask(model)
    assert len(all_traces()) == 3


@ONE_LOOP
def test_it_is_off_where_mlflow_s_tracing_is(model: GenAIModel) -> None:
    with disable_autologging():
        ask(model)
    with mlflow.tracing.context(enabled=False):
        ask(model)
    mlflow.tracing.disable()
    ask(model)
    mlflow.tracing.enable()
    assert all_traces() == []


@ONE_LOOP
def test_calling_it_again_writes_nothing_twice(model: GenAIModel) -> None:
    mlflow_phi3_onnx.autolog()
    model.generate("Once", max_tokens=2)
    only_trace()


@pytest.mark.parametrize("name", ["disable", "silent", "log_traces", "log_content"])
def test_an_argument_that_is_neither_true_nor_false_is_refused(name: str) -> None:
    for value, came in (("no", "'no'"), (None, "null")):
        given: Any = {name: value}
        with pytest.raises(InvalidRequestError, match=f"{name} must be true or false; got {came}"):
            mlflow_phi3_onnx.autolog(**given)


@ONE_LOOP
def test_requests_do_not_wait_for_the_experiment(
    model: GenAIModel, traced: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with pytest.raises(InvalidRequestError, match="autolog: the experiment that"):
        mlflow_phi3_onnx.autolog()
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    mlflow_phi3_onnx.autolog()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")  # is looked up by none
    model.generate("Once", max_tokens=2)
    assert mlflow.get_experiment(only_trace().info.experiment_id or "").name == "named"
    mlflow_phi3_onnx.autolog(disable=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow_phi3_onnx.autolog()  # an address may follow
    assert not [*(tmp_path / "elsewhere").iterdir()]
    mlflow.set_tracking_uri(traced)


@ONE_LOOP
@pytest.mark.parametrize("silent", [False, True])
def test_silent_keeps_back_what_mlflow_says(
    model: GenAIModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    silent: bool,
) -> None:
    mlflow_phi3_onnx.autolog(silent=silent)
    capsys.readouterr()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")  # there is none, which MLflow warns of
    assert model.generate("Once", max_tokens=2)
    list(model.stream_generate("Once", max_tokens=2))
    assert ("Failed to start span" in capsys.readouterr().err) is not silent


class Faulty:
    """An observer that always fails."""

    def refused(self, asked: Asked, error: GenAIError) -> None:
        raise ValueError(asked, error)

    def began(self, planned: PlannedRequest) -> None:
        raise ValueError(planned)


@ONE_LOOP
def test_what_cannot_be_observed_is_answered(
    model: GenAIModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mlflow_phi3_onnx")
    faulty = Faulty()
    observe(faulty)
    ask(model)
    stop_observing(faulty)
    assert caplog.messages == ["A request could not be observed: ValueError"] * 3
    ask(model)
    assert len(caplog.messages) == 3
    assert len(all_traces()) == 6
