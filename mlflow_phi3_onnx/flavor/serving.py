"""A process of MLflow's scoring server: how it is known, and what a model needs there."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import psutil
from mlflow.environment_variables import MLFLOW_LOGGING_LEVEL

from mlflow_phi3_onnx.engine.options import ServingPolicy

__all__ = ["KEYS_VARIABLE", "enter_server"]

KEYS_VARIABLE = "MLFLOW_PHI3_ONNX_API_KEY"
"""Holds the keys that this package's server asks for, and one that its clients bring."""

# MLflow's scoring server passes its model and its timeout to its processes in these variables.
_SERVED_MODEL_VARIABLE = "__pyfunc_model_path__"
_TIMEOUT_VARIABLE = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"


def enter_server() -> ServingPolicy:
    """Prepare this process for serving, where MLflow's scoring server runs in it.

    MLflow shows no log but its own, and does not tell its processes how many they are.

    Returns:
        What the engine needs here; outside a server, what it needs anywhere.
    """
    if _SERVED_MODEL_VARIABLE not in os.environ:
        return ServingPolicy()
    _show_logs()
    timeout = os.environ.get(_TIMEOUT_VARIABLE)
    return ServingPolicy(
        default_loop="auto",
        may_hold_gil=False,
        request_deadline=None if timeout is None else float(timeout),
        processes=_workers(),
    )


def _show_logs() -> None:
    """Write this package's log as MLflow writes its own, unless somebody has said how."""
    logger = logging.getLogger(__name__.partition(".")[0])
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler()
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y/%m/%d %H:%M:%S")
    handler.setFormatter(form)
    logger.addHandler(handler)
    logger.setLevel(MLFLOW_LOGGING_LEVEL.get() or "INFO")


def _workers() -> int:
    """Count the worker processes of this server, which its command line tells."""
    with contextlib.suppress(psutil.Error, ValueError, IndexError):
        process = psutil.Process()
        for member in (process, process.parent()):
            line = member.cmdline() if member else []
            if "--workers" in line and any(Path(word).name == "uvicorn" for word in line):
                return max(1, int(line[line.index("--workers") + 1]))
    return 1
