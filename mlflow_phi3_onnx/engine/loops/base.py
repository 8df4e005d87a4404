"""What every generate loop offers to the engine above it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.errors import GenAIError, GenerationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType

    from mlflow_phi3_onnx.engine.sequence.state import SequenceState

__all__ = ["Failing", "Loop"]

_logger = logging.getLogger(__name__)


class Loop(ABC):
    """A way to run a model. All calls but :meth:`interrupt` come from one thread.

    Attributes:
        name: What ``model_config`` calls it.
        scores: Whether it gives the logits of a prompt's tokens.
        drafts: Whether it can verify draft tokens, and take back wrong ones.
        together: Whether it computes several sequences together.
        why: Why it was taken where another was preferred.
    """

    name: str
    scores = True
    drafts = True
    together = True
    why: str | None = None

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a sequence that it has begun with is not finished."""

    @abstractmethod
    def admit(self, waiting: Sequence[SequenceState]) -> Collection[SequenceState]:
        """Begin with as many waiting sequences as there is room for now, the first one first.

        Args:
            waiting: Sequences in the order in which they came; none of them is finished.

        Returns:
            The sequences that it has begun with.
        """

    @abstractmethod
    def step(self) -> None:
        """Compute one step: a token, or a chunk of a prompt. Failures reach their sequences."""

    def interrupt(self, state: SequenceState) -> None:  # noqa: B027 - not every loop can
        """Stop computing a sequence that is finished, where that is possible within a step."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""


class Failing:
    """Lets whatever goes wrong inside end these sequences, and nothing else.

    A class, because a generator costs a plain token more than its text does.
    """

    def __init__(self, states: Sequence[SequenceState]) -> None:
        self._states = states

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
        for state in self._states:
            if not state.finished:
                state.fail(failure)
        return True
