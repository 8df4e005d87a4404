"""The interface of an engine.

Jobs are plain data, so that an engine may live in another process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mlflow_phi3_onnx.core.request import Completion, Delta, Options

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "Job", "Stream", "Ticket"]


@dataclass(frozen=True)
class Job:
    """One sequence to generate.

    Attributes:
        prompt: Token ids, at least one.
        max_tokens: The most tokens to generate; 0 only where the prompt's log-probabilities are
            all that is wanted.
        options: What the request asks for.
        index: Which of the request's answers this is.
    """

    prompt: NDArray[np.int32]
    max_tokens: int
    options: Options = field(default_factory=Options)
    index: int = 0


class Ticket(Protocol):
    """A job that an engine has taken."""

    def result(self) -> Completion:
        """Wait for the whole answer. Stops the job where the waiting is interrupted."""
        ...

    async def aresult(self) -> Completion:
        """Wait as :meth:`result`, without blocking the event loop."""
        ...

    def cancel(self) -> None:
        """Stop the job: at most one more step is computed. Does nothing when it is over."""
        ...


class Stream(Protocol):
    """Jobs whose answers come in pieces, to be read in a thread or in an event loop."""

    def __iter__(self) -> Generator[tuple[int, Delta]]:
        """Yield each piece with its job's position. Stops the jobs where the loop is left."""
        ...

    def __aiter__(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Yield as :meth:`__iter__`, without blocking the event loop."""
        ...

    def cancel(self) -> None:
        """Stop the jobs: at most one more step is computed."""
        ...


class Engine(Protocol):
    """Runs jobs, several at once."""

    @property
    def kv_tokens(self) -> int:
        """How many tokens the KV memory holds."""
        ...

    def submit(self, jobs: Sequence[Job]) -> Sequence[Ticket]:
        """Take jobs, in order, to be waited for.

        Raises:
            MemoryBudgetError: If a job can never fit into the KV memory.
            CancelledError: If the engine is closed.
        """
        ...

    def stream(self, jobs: Sequence[Job]) -> Stream:
        """Take jobs whose answers are wanted in pieces. Raises as :meth:`submit` does."""
        ...

    def close(self) -> None:
        """Cancel everything and free the model. May be called again."""
        ...
