"""What is known of one request, for its line in the log and for the metrics; never its text."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import GenAIError

if TYPE_CHECKING:
    from collections.abc import Generator

    from fastapi import Request

    from mlflow_phi3_onnx.model.planned import Asked, Outcome, PlannedRequest

__all__ = ["Record", "record_of"]


def _new_id() -> str:
    return f"req-{uuid.uuid4().hex}"


@dataclass
class Record:
    """One request.

    Attributes:
        id: Its id, which the response's header has too.
        method: The HTTP method.
        route: The route's path as it is declared; no text of the caller's.
        status: The HTTP status; 499 where the client went before it had one.
        model: The id of the model that answers.
        stream: Whether the response is a stream.
        queued: Seconds in the queue.
        first_token: Seconds until the first token was there; of a stream, the first chunk of one.
        gaps: Seconds between the tokens of a stream.
        prompt_tokens: Tokens of the prompts, once the response is whole.
        cached_tokens: How many of them were found in the prefix cache.
        completion_tokens: Tokens of the completions; of a stream that was left, its chunks.
        finish_reasons: Why each of the completions ended.
        error: The class of the error, where it failed.
        param: The field at fault.
        known: The fields that may be named in the log; others are text of a caller's.
    """

    id: str = field(default_factory=_new_id)
    method: str = ""
    route: str = "unmatched"
    status: int = 0
    model: str = ""
    stream: bool = False
    queued: float | None = None
    first_token: float | None = None
    gaps: list[float] = field(default_factory=list[float])
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list[str])
    error: str | None = None
    param: str | None = None
    known: frozenset[str] = frozenset()
    begun: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.begun

    def failed(self, error: GenAIError) -> None:
        """Note why it failed."""
        self.error = type(error).__name__
        self.param = error.param if error.param in self.known else None

    @contextmanager
    def noting(self) -> Generator[None]:
        """Note why what is done in here fails, where its error becomes part of a stream."""
        try:
            yield
        except GenAIError as error:
            self.failed(error)
            raise

    def left(self, error: GenAIError) -> None:
        """Note that the client of a stream went, or was cut off."""
        self.failed(error)
        self.status = 499

    def saw(self, chunk: Any) -> None:
        """Note a chunk of a stream."""
        if not chunk["choices"]:
            self.answered(chunk)
            return
        (choice,) = chunk["choices"]
        if reason := choice["finish_reason"]:
            self.finish_reasons.append(reason)
        said = {"text": choice.get("text"), **choice.get("delta", {})}
        if not any(value for field, value in said.items() if field != "role"):
            return
        now = time.monotonic()
        if self.first_token is None:
            self.first_token = now - self.begun
        else:
            self.gaps.append(now - self._last)
        self._last = now
        self.completion_tokens = (self.completion_tokens or 0) + 1

    def answered(self, response: Any) -> None:
        """Note what a whole response, or the last chunk of a stream, tells."""
        usage = response["usage"]
        self.completion_tokens = usage["completion_tokens"]
        self.prompt_tokens = usage["prompt_tokens"]
        self.cached_tokens = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        self.finish_reasons += [choice["finish_reason"] for choice in response["choices"]]

    def answered_rows(self, responses: list[Any]) -> None:
        """Note what the responses of several rows tell; texts tell nothing."""
        for response in responses:
            if isinstance(response, dict):
                so_far = self.prompt_tokens, self.cached_tokens, self.completion_tokens
                self.answered(response)
                self.prompt_tokens = (self.prompt_tokens or 0) + (so_far[0] or 0)
                self.cached_tokens += so_far[1]
                self.completion_tokens = (self.completion_tokens or 0) + (so_far[2] or 0)

    def refused(self, asked: Asked, error: GenAIError) -> None:
        """Note nothing: the error is the response."""

    def began(self, planned: PlannedRequest) -> _FirstToken | None:
        """Watch when the first token of a whole response is there."""
        return None if self.stream or not planned.jobs else _FirstToken(self)

    def line(self) -> dict[str, Any]:
        """Return what the log says of it."""
        said: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(self.seconds, 4),
            "model": self.model or None,
            "stream": self.stream or None,
            "queued": None if self.queued is None else round(self.queued, 4),
            "first_token": None if self.first_token is None else round(self.first_token, 4),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens or None,
            "completion_tokens": self.completion_tokens,
            "finish_reason": ",".join(sorted(set(self.finish_reasons))) or None,
            "error": self.error,
            "param": self.param,
        }
        return {name: value for name, value in said.items() if value is not None}


class _FirstToken:
    """Notes when the first token of a whole response was there."""

    thorough = False

    def __init__(self, record: Record) -> None:
        self._record = record
        self._submitted = record.seconds

    def wrote(self, chunk: Any) -> None:
        """Note nothing."""

    def ended(self, outcome: Outcome) -> None:
        """Note the first of all that the request's completions, or rows, have."""
        times = [
            one.timings.queued + one.timings.prefill for one in outcome.completions if one.timings
        ]
        if times:
            first = self._submitted + min(times)
            self._record.first_token = min(first, self._record.first_token or first)


def record_of(request: Request) -> Record:
    """Return the record of a request that is being answered."""
    return request.scope["state"]["record"]
