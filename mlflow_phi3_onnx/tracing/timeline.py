"""When what happened to a request: the spans below its own, and its times in numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import SpanType

from mlflow_phi3_onnx.core.tasks import CHAT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.entities import LiveSpan

    from mlflow_phi3_onnx.core.request import Completion, Timings
    from mlflow_phi3_onnx.model.planned import Outcome, PlannedRequest

__all__ = ["Timeline", "totals"]


class Timeline:
    """Tells what the time was when the monotonic clock had a value."""

    def __init__(self) -> None:
        self._then, self._then_ns = time.monotonic(), time.time_ns()

    def ns(self, when: float) -> int:
        """Return nanoseconds of Unix time."""
        return self._then_ns + int((when - self._then) * 1e9)

    def write(
        self, span: LiveSpan, planned: PlannedRequest, submitted: float, outcome: Outcome
    ) -> None:
        """Write what happened as spans below that of the request.

        Args:
            span: The request's.
            planned: The request.
            submitted: When the engine was given its jobs.
            outcome: How it ended.
        """
        chat = planned.asked is not None and planned.asked.task == CHAT
        if planned.encoding is not None:
            name = "template and tokenization" if chat else "tokenization"
            self._child(span, name, *planned.encoding)
        several = len(outcome.completions) > 1
        for place, completion in enumerate(outcome.completions):
            begin = submitted
            timings = completion.timings
            for name, seconds in timings._asdict().items() if timings else ():
                shown = {"queued": "queue"}.get(name, name)
                self._child(span, shown, begin, begin + seconds, place if several else None)
                begin += seconds
        if outcome.reading is not None and planned.jobs[0].options.keep_control_tokens:
            self._child(span, "tool parsing", *outcome.reading, kind=SpanType.PARSER)

    def _child(
        self,
        span: LiveSpan,
        name: str,
        begin: float,
        end: float,
        choice: int | None = None,
        kind: str = SpanType.TASK,
    ) -> None:
        child = mlflow.start_span_no_context(
            name, span_type=kind, parent_span=span, start_time_ns=self.ns(begin)
        )
        if choice is not None:
            child.set_attribute("choice", choice)
        child.end(end_time_ns=self.ns(end))


def totals(completions: Sequence[Completion], before: float) -> dict[str, float]:
    """Return a request's times in seconds, and its speed.

    Where there are several completions, they are computed together: the first token is that of
    whichever has it first, and decoding ends with the last.

    Args:
        completions: Its completions.
        before: How long it took until the engine was given its jobs.
    """
    timed = [completion.timings for completion in completions if completion.timings]
    if not timed:
        return {}
    first = min(timed, key=_until_first)
    decode = max(sum(timings) for timings in timed) - _until_first(first)
    found = {
        "queue_seconds": first.queued,
        "prefill_seconds": first.prefill,
        "decode_seconds": decode,
        "time_to_first_token_seconds": before + _until_first(first),
    }
    later = sum(completion.tokens for completion in completions) - len(timed)
    if later > 0 and decode > 0:
        found["tokens_per_second"] = later / decode
    return found


def _until_first(timings: Timings) -> float:
    return timings.queued + timings.prefill
