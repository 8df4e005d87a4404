"""What an operator's log says of a request: how it went, and never what it said."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import GenAIError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.engine.base import Job

__all__ = ["Watch", "log_refusal"]

_logger = logging.getLogger(__name__)


def log_refusal(error: GenAIError, fields: frozenset[str]) -> None:
    """Write that a request was refused: the error's class, and its field where that is known.

    Args:
        error: The error.
        fields: The names that a request's fields may have; others are text of a caller's.
    """
    field = f", {error.param}" if error.param in fields else ""
    _logger.info("Refused a request: %s%s.", type(error).__name__, field)


class Watch:
    """Watches requests that are run together."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __enter__(self) -> None:
        """Enter."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Write that a request failed, where one did."""
        if isinstance(error, GenAIError):
            self.failed(error)

    def failed(self, error: GenAIError) -> None:
        """Write that a request failed."""
        seconds = time.monotonic() - self._begun
        _logger.info("A request failed after %.3f s: %s.", seconds, type(error).__name__)

    def done(self, jobs: Sequence[Job], completions: Sequence[Completion], response: Any) -> Any:
        """Write how a request went, and return its response."""
        if jobs and _logger.isEnabledFor(logging.DEBUG):
            _logger.debug(
                "Answered %s in %.3f s: %s prompt tokens (%s cached), %s completion tokens, %s.",
                response["id"] if isinstance(response, dict) else "a request",
                time.monotonic() - self._begun,
                f"{sum(len(job.prompt) for job in jobs if job.index == 0):,}",
                f"{sum(completion.cached_tokens for completion in completions):,}",
                f"{sum(completion.tokens for completion in completions):,}",
                ", ".join(sorted({str(completion.finish_reason) for completion in completions})),
            )
        return response

    def left(self, token_counts: Sequence[int]) -> None:
        """Write that a stream has ended, wherever it was."""
        _logger.debug(
            "A stream of %d completions ended after %.3f s and %s completion tokens.",
            len(token_counts),
            time.monotonic() - self._begun,
            f"{sum(token_counts):,}",
        )
