"""Where the traces of a server go."""

from __future__ import annotations

import os

import mlflow

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.errors import InvalidRequestError

__all__ = ["pin_experiment"]

_EXPERIMENT = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")


def pin_experiment() -> None:
    """Look the experiment of MLflow's environment variables up once, and make it if need be.

    MLflow would ask the tracking server again for each request, which would wait for it.

    Raises:
        InvalidRequestError: If there is no such experiment, or it cannot be looked up.
    """
    if not any(name in os.environ for name in _EXPERIMENT):
        return
    try:
        mlflow.set_experiment(experiment_id=mlflow_compat.get_experiment_id())
    except Exception as error:
        raise InvalidRequestError(
            f"trace: the experiment that {_EXPERIMENT[0]} or {_EXPERIMENT[1]} names cannot be found"
            f" ({type(error).__name__}). See that MLFLOW_TRACKING_URI is right and the tracking"
            " server answers, or start without trace.",
            param="trace",
        ) from error
