"""MLflow stores of their own, and requests that are written there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import pytest

import mlflow_phi3_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def traced(tracking: str) -> Iterator[str]:
    """Every request of this process is written, to a store in tmp_path; returns its URI."""
    mlflow_phi3_onnx.autolog()
    yield tracking
    mlflow_phi3_onnx.autolog(disable=True)
    mlflow.flush_trace_async_logging()
