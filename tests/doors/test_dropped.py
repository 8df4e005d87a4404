"""What MLflow drops before a pyfunc sees it, as docs/troubleshooting.md tells."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from mlflow_phi3_onnx import UnsupportedParameterError, save_model
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS: dict[Task, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"prompt": "Hi"},
    TEXT: {"prompt": "Hi"},
}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What MLflow logs, whose loggers do not pass on what they get."""
    logger = logging.getLogger("mlflow")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("task", ROWS)
def test_misspelt_names_are_dropped_with_a_warning(
    demo: Path, tmp_path: Path, task: Task, warned: pytest.LogCaptureFixture
) -> None:
    save_model(demo, tmp_path / "saved", task=task)
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"), model_config={"max_token": 1})
    assert "Argument(s) max_token were ignored" in warned.text
    limit = {"max_tokens": 1.0}
    misspelt = {**ROWS[task], "max_tokns": 2}
    if task == CHAT:
        assert model.predict(misspelt, params=limit)
        assert "`['max_tokns']`. These inputs will be ignored" in warned.text
    else:
        with pytest.raises(UnsupportedParameterError, match="Did you mean max_tokens"):
            model.predict(misspelt, params=limit)
    warned.clear()
    assert model.predict(ROWS[task], params={**limit, "tools": []})
    assert "Unrecognized params ['tools'] are ignored" in warned.text
    model.get_raw_model().close()


def test_without_a_signature_all_fields_arrive_and_no_params(
    demo: Path, tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    save_model(demo, tmp_path / "saved", signature=False)
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    with pytest.raises(UnsupportedParameterError, match="Did you mean max_tokens"):
        model.predict({**ROWS[CHAT], "max_tokns": 2})
    (answer,) = model.predict({**ROWS[CHAT], "max_tokens": 2}, params={"max_tokens": 1})
    assert answer["usage"]["completion_tokens"] == 2
    assert "Ignoring provided params: ['max_tokens']" in warned.text
    model.get_raw_model().close()
