"""Spans that belong to a trace of another process, as a W3C ``traceparent`` header tells.

MLflow knows such a trace only while it is registered here. Its own context manager for that
replaces what is registered when another request of the same trace comes, and forgets it before its
spans are written; so the requests of a trace are counted here.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mlflow_phi3_onnx import mlflow_compat

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["RemoteParent", "flush"]

_lock = threading.Lock()
_held: Counter[int] = Counter()


def flush() -> None:
    """Hand ended spans to whatever sends them, which is done some at a time otherwise."""
    force_flush = getattr(mlflow_compat.tracer_provider.get(), "force_flush", None)
    if force_flush is not None:
        force_flush()


class RemoteParent:
    """The span of another process that a request's span belongs to, if any.

    Args:
        traceparent: The header; one that is none is left out of account, as the standard says.
    """

    def __init__(self, traceparent: str | None) -> None:
        headers = {} if traceparent is None else {"traceparent": traceparent}
        self._context = TraceContextTextMapPropagator().extract(headers)
        found = trace.get_current_span(self._context).get_span_context()
        self._trace = found.trace_id if traceparent is not None and found.is_valid else None

    @contextmanager
    def attached(self) -> Generator[None]:
        """Let a span that is started in here belong to it; it is held from then on."""
        if self._trace is None:
            yield
            return
        self._hold(self._trace)
        contexts = mlflow_compat.get_context_api()
        token = contexts.attach(self._context)
        try:
            yield
        except BaseException:
            self.release()
            raise
        finally:
            contexts.detach(token)

    def release(self) -> None:
        """Forget it, once the span has ended and no other belongs to the same trace."""
        with _lock:
            if self._trace is None or self._trace not in _held:
                return
            _held[self._trace] -= 1
            if _held[self._trace]:
                return
            del _held[self._trace]
            # Ended spans wait to be handed to whatever sends them, which looks the trace up.
            flush()
            mlflow_compat.InMemoryTraceManager.get_instance().pop_trace(self._trace)

    @staticmethod
    def _hold(otel_id: int) -> None:
        manager = mlflow_compat.InMemoryTraceManager.get_instance()
        with _lock:
            if otel_id not in _held and manager.get_mlflow_trace_id_from_otel_id(otel_id):
                return  # a trace of this process, which ends by itself
            if otel_id not in _held:
                trace_id = mlflow_compat.generate_mlflow_trace_id_from_otel_trace_id(otel_id)
                info = mlflow_compat.TraceInfo(
                    trace_id=trace_id,
                    trace_location=None,  # type: ignore[arg-type] - as MLflow's own does
                    request_time=None,  # type: ignore[arg-type] - as above
                    state=mlflow_compat.TraceState.IN_PROGRESS,
                )
                manager.register_trace(otel_id, info, is_remote_trace=True)
            _held[otel_id] += 1
