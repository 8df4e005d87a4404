"""MLflow stores of their own, and requests that are written there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import mlflow.tracing
import pytest

import mlflow_phi3_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def traced(tracking: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every request of this process is written, to a store in tmp_path; returns its URI.

    It is written before the request returns: MLflow's own queue takes seconds to be emptied.
    """
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    mlflow_phi3_onnx.autolog()
    yield tracking
    mlflow_phi3_onnx.autolog(disable=True)
    mlflow.tracing.reset()
