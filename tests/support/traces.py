"""Traces as MLflow has stored them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace

__all__ = ["all_traces", "main_span", "only_trace", "parts"]


def all_traces() -> list[Trace]:
    """All traces of the active experiment, the first one first."""
    mlflow.flush_trace_async_logging()
    found: Any = mlflow.search_traces(return_type="list", order_by=["timestamp_ms ASC"])
    return found


def only_trace() -> Trace:
    """The one trace that there is."""
    (trace,) = all_traces()
    return trace


def main_span(trace: Trace) -> Span:
    """The span of a model's request, of which there is one."""
    (span,) = [span for span in trace.data.spans if span.span_type in ("CHAT_MODEL", "LLM")]
    return span


def parts(trace: Trace, span: Span) -> list[Span]:
    """The spans below one, in order; each lies within it."""
    below = [one for one in trace.data.spans if one.parent_id == span.span_id]
    assert span.end_time_ns
    for one in below:
        assert one.end_time_ns
        assert span.start_time_ns <= one.start_time_ns <= one.end_time_ns <= span.end_time_ns
    return sorted(below, key=lambda one: (one.start_time_ns, one.end_time_ns or 0))
