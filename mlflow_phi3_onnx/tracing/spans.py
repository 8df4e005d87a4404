"""The observer that writes a request as a trace of MLflow's, or as a span of its caller's trace."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import LiveSpan, SpanEvent, SpanStatus, SpanStatusCode, SpanType
from mlflow.tracing import set_span_chat_tools

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.checks import unpacked
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.errors import CancelledError
from mlflow_phi3_onnx.mlflow_compat import CostKey, SpanAttributeKey, TokenUsageKey
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from mlflow_phi3_onnx.tracing.remote import RemoteParent, flush
from mlflow_phi3_onnx.tracing.timeline import Timeline, totals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.model.planned import Asked, Outcome, PlannedRequest

__all__ = ["PREFIX", "Caller", "Tracer"]

PREFIX = "onnx_genai."
"""Stands before the names of attributes that are this package's own."""

PROVIDER = "onnxruntime-genai"

_KINDS: Mapping[Task, tuple[str, str]] = {
    CHAT: ("chat", SpanType.CHAT_MODEL),
    COMPLETIONS: ("complete", SpanType.LLM),
    TEXT: ("generate", SpanType.LLM),
}

# MLflow looks a price up by the model's name where none is given.
_FREE = dict.fromkeys((CostKey.INPUT_COST, CostKey.OUTPUT_COST, CostKey.TOTAL_COST), 0.0)


@dataclass(frozen=True)
class Caller:
    """Who asked, where a request came over HTTP.

    Attributes:
        request_id: The request's id there.
        traceparent: The header in which the caller names its own span.
        model: The name by which it asked for the model.
    """

    request_id: str | None = None
    traceparent: str | None = None
    model: str | None = None


class Tracer:
    """Writes requests as spans.

    Args:
        content: Whether prompts, completions, tools and the texts of errors are in them.
        caller: Who asked.
    """

    def __init__(self, *, content: bool, caller: Caller = Caller()) -> None:
        self._content = content
        self._caller = caller

    def refused(self, asked: Asked, error: GenAIError) -> None:
        """Write a span of a request that is not run."""
        span = _RequestSpan(asked, self._caller, content=self._content)
        span.fail(error)
        span.end()

    def began(self, planned: PlannedRequest) -> _Watch | None:
        """Start a span of a request; nothing where MLflow's tracing is off."""
        if planned.asked is None:
            return None
        watch = _Watch(planned, planned.asked, self._caller, content=self._content)
        return watch if watch.recorded else None


class _RequestSpan:
    """The span of one request."""

    def __init__(self, asked: Asked, caller: Caller, *, content: bool) -> None:
        self.asked = asked
        self.caller = caller
        self.content = content
        self.line = Timeline()
        self.begun = time.monotonic()
        self.outputs: Any = None if content else {}  # {}, for MLflow warns of a span without
        self.status: SpanStatus | None = None
        self._parent = RemoteParent(caller.traceparent)
        self.fields = _writable(_fields(asked)) if content else _fields(asked)
        name, kind = _KINDS[asked.task]
        with self._parent.attached():
            self.live = mlflow.start_span_no_context(
                name,
                span_type=kind,
                inputs=self.fields if content else {},
                start_time_ns=self.line.ns(asked.came),
            )
        self.recorded = isinstance(self.live, LiveSpan)
        if not self.recorded:
            self._parent.release()
            return
        self.live.set_attributes(
            {
                SpanAttributeKey.MODEL: caller.model or asked.model,
                SpanAttributeKey.MODEL_PROVIDER: PROVIDER,
                SpanAttributeKey.MESSAGE_FORMAT: "openai",
                SpanAttributeKey.LLM_COST: _FREE,
            }
        )
        if caller.request_id is not None:
            self.live.set_attribute(f"{PREFIX}request_id", caller.request_id)
        if asked.model_id is not None:
            self.live.set_attribute(f"{PREFIX}model_id", asked.model_id)
        self._link(caller.request_id)

    def fail(self, error: Exception) -> None:
        """Say that the request has failed, and why."""
        name = type(error).__name__
        self.live.set_attribute("error.type", name)
        if self.content:
            event = SpanEvent.from_exception(error)
            self.live.add_event(SpanEvent(event.name, attributes=_writable(event.attributes)))
        told = f"{name}: {error}" if self.content else name
        self.status = SpanStatus(SpanStatusCode.ERROR, _writable(told))

    def end(self) -> None:
        """End the span; it is written."""
        if self._is_late():
            flush()
        self.live.end(outputs=self.outputs, status=self.status)
        self._parent.release()

    def _is_late(self) -> bool:
        """Whether the trace has ended before, as where a stream is left in a span.

        MLflow hands a trace over with its first batch of spans that finds none open, and then loses
        those that wait for the next batch, and with them the trace. So nothing else may wait.
        """
        manager = mlflow_compat.InMemoryTraceManager.get_instance()
        with manager.get_trace(self.live.trace_id) as trace:
            root = None if trace is None else trace.get_root_span()
        return root is not None and root.end_time_ns is not None

    def _link(self, request_id: str | None) -> None:
        """Link the trace to the model, unless it is linked to one, and to the HTTP request."""
        manager = mlflow_compat.InMemoryTraceManager.get_instance()
        with manager.get_trace(self.live.trace_id) as trace:
            if trace is None:
                return
            if self.asked.model_id is not None:
                key = mlflow_compat.TraceMetadataKey.MODEL_ID
                trace.info.trace_metadata.setdefault(key, self.asked.model_id)
            if request_id is not None and self.live.parent_id is None:
                trace.info.client_request_id = request_id


class _Watch(_RequestSpan):
    """Writes the span of a request that is run."""

    thorough = True

    def __init__(
        self, planned: PlannedRequest, asked: Asked, caller: Caller, *, content: bool
    ) -> None:
        super().__init__(asked, caller, content=content)
        self._planned = planned
        self._submitted = time.monotonic()
        self._chunks = 0
        if not self.recorded:
            return
        adapter = planned.jobs[0].options.adapter
        if adapter is not None and caller.model is None:
            self.live.set_attribute(SpanAttributeKey.MODEL, adapter)
        known = PARAMETERS[asked.task]
        parameters = {name: value for name, value in self.fields.items() if name in known}
        if content:
            if tools := parameters.pop("tools", None):
                with suppress(mlflow.MlflowException):  # MLflow knows fewer forms
                    set_span_chat_tools(self.live, tools)
        else:
            parameters = {k: v for k, v in parameters.items() if isinstance(v, int | float)}
        self.live.set_attributes(parameters)

    def wrote(self, chunk: Any) -> None:
        """Write an event of a chunk, which is nothing but content."""
        if not self.content:
            return
        name = mlflow_compat.STREAM_CHUNK_EVENT_NAME_FORMAT.format(index=self._chunks)
        value = json.dumps(self._as_sent(chunk), cls=mlflow_compat.TraceJSONEncoder)
        attributes: dict[str, Any] = {mlflow_compat.STREAM_CHUNK_EVENT_VALUE_KEY: value}
        self.live.add_event(SpanEvent(name, attributes=attributes))
        self._chunks += 1

    def ended(self, outcome: Outcome) -> None:
        """End the span, with what came of the request."""
        try:
            self._take(outcome)
        finally:
            self.end()

    def _take(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.fail(outcome.error)
        elif outcome.left and not self.asked.stream:
            self.fail(CancelledError("Nobody waited for the answer."))
        if self.content and outcome.response is not None:
            self.outputs = self._as_sent(outcome.response)
        self.line.write(self.live, self._planned, self._submitted, outcome)
        reasons: list[str | None] = [one.finish_reason for one in outcome.completions]
        if isinstance(outcome.response, dict) and not outcome.left:
            reasons = [choice["finish_reason"] for choice in outcome.response["choices"]]
        elif outcome.left and not reasons:
            reasons = [None for _ in self._planned.jobs]
        if reasons:
            told = [reason or "cancelled" for reason in reasons]
            self.live.set_attribute(f"{PREFIX}finish_reasons", told)
        if not outcome.completions:
            return
        self.live.set_attributes(_usage(self._planned, outcome))
        before = self.begun - self.asked.came  # without the time that tracing takes itself
        for name, value in totals(outcome.completions, before).items():
            self.live.set_attribute(PREFIX + name, value)

    def _as_sent(self, answer: Any) -> Any:
        """Return a response or a chunk with the model's name that the caller reads in it."""
        if self.caller.model is None or not isinstance(answer, dict):
            return answer
        return {**answer, "model": self.caller.model}


def _fields(asked: Asked) -> dict[str, Any]:
    """Put together what was asked for, in OpenAI's form."""
    beside, fields = asked.params or {}, unpacked(asked.fields)
    if not isinstance(fields, dict):
        return {INPUT_FIELDS[asked.task]: fields}
    given = {**beside, **fields}
    return {name: unpacked(value) for name, value in given.items() if value is not None}


def _writable(value: Any) -> Any:
    """Return a value without lone surrogates, which no store of MLflow's can write."""
    with suppress(TypeError, ValueError):  # where it is no JSON, it is MLflow's to write
        written = json.dumps(value, cls=mlflow_compat.TraceJSONEncoder, ensure_ascii=False)
        encoded = written.encode(errors="replace")
        return value if encoded.decode() == written else json.loads(encoded)
    return value


def _usage(planned: PlannedRequest, outcome: Outcome) -> dict[str, Any]:
    """Return the attributes of the token counts: MLflow's, and OpenAI's, which say more."""
    if isinstance(outcome.response, dict):
        counts = outcome.response["usage"]
        cached = counts.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    else:
        (completion,) = outcome.completions
        prompt, cached = len(planned.jobs[0].prompt), completion.cached_tokens
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": completion.tokens,
            "total_tokens": prompt + completion.tokens,
        }
    usage = {
        TokenUsageKey.INPUT_TOKENS: counts["prompt_tokens"],
        TokenUsageKey.OUTPUT_TOKENS: counts["completion_tokens"],
        TokenUsageKey.TOTAL_TOKENS: counts["total_tokens"],
    }
    if cached:
        usage[TokenUsageKey.CACHE_READ_INPUT_TOKENS] = cached
    return {SpanAttributeKey.CHAT_USAGE: usage, f"{PREFIX}usage": counts}
