"""What every generate loop offers to the engine above it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from mlflow_phi3_onnx.errors import GenAIError, GenerationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType

    from mlflow_phi3_onnx.engine.sequence.state import Row

__all__ = ["Failing", "Loop"]

_logger = logging.getLogger(__name__)


class Loop(Protocol):
    """A way to run a model. All calls but :meth:`interrupt` come from one thread."""

    @property
    def name(self) -> str:
        """What ``model_config`` calls it."""
        ...

    @property
    def scores(self) -> bool:
        """Whether it gives the logits of a prompt's tokens."""
        ...

    @property
    def drafts(self) -> bool:
        """Whether it can check guesses, and take back wrong ones."""
        ...

    def needs(self, row: Row) -> int:
        """Count the tokens of KV cache that a row takes at most, alone."""
        ...

    def admit(self, waiting: Sequence[Row]) -> Collection[Row]:
        """Begin with as many of the waiting rows as there is room for now, the first one first.

        Args:
            waiting: Rows in the order in which they came; none of them is over.

        Returns:
            The rows that it has begun with.
        """
        ...

    @property
    def busy(self) -> bool:
        """Whether a row that it has begun with is not over."""
        ...

    def step(self) -> None:
        """Compute one step: one more token, or a piece of a prompt. Failures reach their rows."""
        ...

    def interrupt(self, row: Row) -> None:
        """Stop computing a row that is over, where that is possible within a step."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Failing:
    """Lets whatever goes wrong inside end these rows, and nothing else.

    A class, because a generator costs a plain token more than its text does.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, GenAIError):
            failure = error
        else:
            _logger.error("Generation failed: %s", type(error).__name__)
            failure = GenerationError(f"Generation failed ({type(error).__name__}).")
            failure.__cause__ = error
        for row in self._rows:
            if not row.over:
                row.fail(failure)
        return True
