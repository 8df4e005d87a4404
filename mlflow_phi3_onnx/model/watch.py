"""What an operator's log says of a request: how it went, and never what it said."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS

if TYPE_CHECKING:
    from mlflow_phi3_onnx.model.planned import Asked, Outcome, PlannedRequest

__all__ = ["LOG"]

_logger = logging.getLogger(__name__)


class _Log:
    """Writes of every request: the first of the observers."""

    def refused(self, asked: Asked, error: GenAIError) -> None:
        """Write the error's class, and its field where that is no text of a caller's."""
        known = error.param == INPUT_FIELDS[asked.task] or error.param in PARAMETERS[asked.task]
        field = f", {error.param}" if known else ""
        _logger.info("Refused a request: %s%s.", type(error).__name__, field)

    def began(self, planned: PlannedRequest) -> _Watch | None:
        """Watch it, unless it was answered before it could be run."""
        return _Watch(planned) if planned.jobs else None


class _Watch:
    """Writes how one request went."""

    thorough = False

    def __init__(self, planned: PlannedRequest) -> None:
        self._planned = planned
        self._begun = time.monotonic()

    def wrote(self, chunk: Any) -> None:
        """Write nothing."""

    def ended(self, outcome: Outcome) -> None:
        """Write how it ended."""
        seconds = time.monotonic() - self._begun
        if isinstance(outcome.error, GenAIError):
            _logger.info(
                "A request failed after %.3f s: %s.", seconds, type(outcome.error).__name__
            )
        if not _logger.isEnabledFor(logging.DEBUG):
            return
        completions, asked = outcome.completions, self._planned.asked
        tokens = f"{sum(completion.tokens for completion in completions):,}"
        if asked is not None and asked.stream:
            _logger.debug(
                "A stream of %d completions ended after %.3f s and %s completion tokens.",
                len(completions),
                seconds,
                tokens,
            )
        elif completions:
            response = outcome.response
            _logger.debug(
                "Answered %s in %.3f s: %s prompt tokens (%s cached), %s completion tokens, %s.",
                response["id"] if isinstance(response, dict) else "a request",
                seconds,
                f"{sum(len(job.prompt) for job in self._planned.jobs if job.index == 0):,}",
                f"{sum(completion.cached_tokens for completion in completions):,}",
                tokens,
                ", ".join(sorted({str(completion.finish_reason) for completion in completions})),
            )


LOG = _Log()
