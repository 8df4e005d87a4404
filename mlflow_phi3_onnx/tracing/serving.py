"""Where traces go, and how a tracking server that is slow or down holds nothing up."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlflow

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["set_up", "written_in_time"]

_logger = logging.getLogger(__name__)

_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

_EXPERIMENT = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")


def set_up(option: str) -> None:
    """Do what MLflow would do at the first trace, for which a request would wait.

    The experiment of MLflow's environment variables is looked up, and made if need be; MLflow would
    ask the tracking server again for each request. The store is opened.

    Args:
        option: What was asked for, for messages.

    Raises:
        InvalidRequestError: If there is no such experiment, or it cannot be looked up.
    """
    try:
        if any(name in os.environ for name in _EXPERIMENT):
            mlflow.set_experiment(experiment_id=mlflow_compat.get_experiment_id())
    except Exception as error:
        raise InvalidRequestError(
            f"{option}: the experiment that {_EXPERIMENT[0]} or {_EXPERIMENT[1]} names cannot be"
            f" found ({type(error).__name__}). See that MLFLOW_TRACKING_URI is right and the"
            f" tracking server answers, or leave {option} out.",
            param=option,
        ) from error
    mlflow_compat.tracer_provider.get_or_init_tracer(__name__)


@contextmanager
def written_in_time(seconds: float) -> Generator[None]:
    """Write what is traced in here to its end, but give up what cannot be written.

    MLflow tries each of several requests a span again for minutes, and a process does not end
    before that. In a process that traces, it is tried twice more, unless the environment says
    otherwise.

    Args:
        seconds: How long the process waits in the end for what is not written yet.
    """
    os.environ.setdefault(_RETRIES, "2")
    try:
        yield
    finally:
        flush = threading.Thread(target=mlflow.flush_trace_async_logging, daemon=True)
        flush.start()
        flush.join(seconds)
        if flush.is_alive():
            _logger.warning("Traces are lost: the tracking server does not take them in time.")
            os.environ[_RETRIES] = "0"
