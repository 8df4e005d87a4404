"""``mlflow_phi3_onnx.autolog``: traces of all requests of this process."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import mlflow

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME
from mlflow_phi3_onnx.core.checks import boolean
from mlflow_phi3_onnx.core.options import Option, table
from mlflow_phi3_onnx.model.observers import observe, stop_observing
from mlflow_phi3_onnx.tracing.serving import set_up
from mlflow_phi3_onnx.tracing.spans import Tracer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.model.observers import Observer, Watcher
    from mlflow_phi3_onnx.model.planned import Asked, Outcome, PlannedRequest

__all__ = ["autolog"]

_ARGUMENTS = table(
    Option("disable", "Whether to write nothing.", boolean),
    Option("silent", "Whether MLflow says nothing of its own meanwhile.", boolean),
    Option("log_traces", "Whether to write traces.", boolean),
    Option("log_content", "Whether traces hold what requests and responses say.", boolean),
)

_lock = threading.Lock()
_active: list[Observer] = []


def autolog(
    *,
    disable: bool = False,
    silent: bool = False,
    log_traces: bool = True,
    log_content: bool = True,
) -> None:
    """Write every request of this process to MLflow, as a trace.

    That is every call of a native model and every row of a pyfunc, streams and awaited calls
    included. A call inside of a span becomes a span of that trace. Calling it again replaces what
    it was called with before; requests that have begun are not affected.

    Args:
        disable: Whether to stop that.
        silent: Whether to keep back what MLflow logs and warns of while it writes.
        log_traces: Whether to write traces.
        log_content: Whether they hold prompts, completions, tools and the texts of errors.
            Without, they hold names, numbers and times.

    Raises:
        InvalidRequestError: If an argument is not true or false, or the experiment that MLflow's
            environment variables name cannot be looked up.
    """
    given = {
        "disable": disable,
        "silent": silent,
        "log_traces": log_traces,
        "log_content": log_content,
    }
    for name, value in given.items():
        _ARGUMENTS[name].read(value, shown=True)
    # Without an address, one may follow, and MLflow would make a database here meanwhile.
    if log_traces and not disable and mlflow.is_tracking_uri_set():
        with _quiet(silent=silent):
            set_up("autolog")
    # What is decorated is not run where it is disabled.
    with _lock:
        _integrate(**given)
        while _active:
            stop_observing(_active.pop())
        if log_traces and not disable:
            _active.append(_Autologging(Tracer(content=log_content), silent=silent))
            observe(_active[0])


@mlflow_compat.autologging_integration(FLAVOR_NAME)
def _integrate(
    disable: bool = False,
    silent: bool = False,
    log_traces: bool = True,
    log_content: bool = True,
) -> None:
    """Let MLflow know of the integration, so that it can be disabled with all others."""


class _Autologging:
    """Passes on to a tracer what is not disabled, and keeps MLflow silent where that is wanted."""

    def __init__(self, tracer: Tracer, *, silent: bool) -> None:
        self._tracer = tracer
        self._silent = silent

    def refused(self, asked: Asked, error: GenAIError) -> None:
        """Pass on."""
        if not mlflow_compat.autologging_is_off(FLAVOR_NAME):
            with _quiet(silent=self._silent):
                self._tracer.refused(asked, error)

    def began(self, planned: PlannedRequest) -> Watcher | None:
        """Pass on."""
        if mlflow_compat.autologging_is_off(FLAVOR_NAME):
            return None
        with _quiet(silent=self._silent):
            watcher = self._tracer.began(planned)
        return _Silent(watcher) if watcher is not None and self._silent else watcher


class _Silent:
    """Keeps MLflow silent while a watcher is told something."""

    thorough = True

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def wrote(self, chunk: Any) -> None:
        """Pass on."""
        with _quiet(silent=True):
            self._watcher.wrote(chunk)

    def ended(self, outcome: Outcome) -> None:
        """Pass on."""
        with _quiet(silent=True):
            self._watcher.ended(outcome)


def _quiet(*, silent: bool) -> AbstractContextManager[Any]:
    """Keep MLflow silent, if that is wanted."""
    if not silent:
        return nullcontext()
    return mlflow_compat.MlflowEventsAndWarningsBehaviorGlobally(
        disable_event_logs=True, disable_warnings=True, reroute_warnings=False
    )
