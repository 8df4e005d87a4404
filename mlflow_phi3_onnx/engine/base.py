"""The engine's edge: token ids go in, token ids come out, as plain data.

So an engine may live in this process or in another. No text crosses the edge: prompts are encoded,
stop sequences found and log-probabilities given their texts on the caller's side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from mlflow_phi3_onnx.core.request import FinishReason, Options, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.errors import GenAIError

__all__ = ["Deliver", "Engine", "Health", "Job", "JobHandle", "Load", "TokenDelta", "TokenScore"]


@dataclass(frozen=True)
class Job:
    """One sequence to generate.

    Attributes:
        prompt: Token ids, at least one.
        max_tokens: The most tokens to generate; 0 only where the prompt's log-probabilities are
            all that is wanted.
        options: What its request asks for. The engine leaves what concerns text to the caller,
            and all limits but ``max_tokens`` are settled.
        index: Which completion of its request this is: each draws other random numbers.
        streamed: Whether each token is delivered at once, or all of them together at the end.
        draft_source: Token ids that the completion is likely to repeat, beside the prompt's.
    """

    prompt: NDArray[np.int32]
    max_tokens: int
    options: Options = field(default_factory=Options)
    index: int = 0
    streamed: bool = False
    draft_source: tuple[int, ...] = ()


class TokenScore(NamedTuple):
    """The log-probability of one token.

    Attributes:
        token_id: The token.
        logprob: Its natural logarithm of probability under the raw logits.
        top: The most likely tokens there with theirs, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(NamedTuple):
    """What was added to a sequence since the delta before.

    Attributes:
        token_ids: New tokens, the end-of-sequence token included.
        finish_reason: Why the sequence is finished, on the last delta.
        logprobs: One entry a new token where asked for, but none for an end-of-sequence token.
        prompt_logprobs: One entry a token of the prompt where asked for, on the first delta; the
            first token's is None, for nothing comes before it.
        cached_tokens: How many of the prompt's tokens were found in a cache.
        drafted_tokens: How many draft tokens were verified so far.
        accepted_tokens: How many of those are part of the completion.
        timings: How long it took so far, on the first delta and the last.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenScore, ...] = ()
    prompt_logprobs: tuple[TokenScore | None, ...] = ()
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    timings: Timings | None = None


class Load(NamedTuple):
    """What an engine has to do at a moment.

    Attributes:
        running: How many sequences it computes.
        waiting: How many wait for room.
    """

    running: int = 0
    waiting: int = 0


class Health(NamedTuple):
    """How an engine is.

    Attributes:
        deaths: How many of its worker processes have died.
        dead: Seconds for which it takes no jobs, because its worker process is gone and no other
            was started.
    """

    deaths: int = 0
    dead: float = 0.0


Deliver: TypeAlias = "Callable[[int, TokenDelta | GenAIError], bool]"
"""Takes what comes of the job at a position; a last delta or an error is the last it gets.

It is called from the engine's own thread, so it must not wait. It returns whether more is wanted:
the sequence is cancelled where it is not.
"""


class JobHandle(Protocol):
    """A job that an engine has taken."""

    def cancel(self) -> None:
        """Stop the job: at most one more step is computed. Does nothing once it is finished."""
        ...


class Engine(Protocol):
    """Runs jobs, in this process or in another.

    Attributes:
        kv_tokens: How many tokens the KV memory holds.
    """

    kv_tokens: int

    @property
    def loop_name(self) -> str:
        """The loop that runs them."""
        ...

    @property
    def load(self) -> Load:
        """What there is to do; may be asked for in any thread."""
        ...

    @property
    def health(self) -> Health:
        """How it is; may be asked for in any thread."""
        ...

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Sequence[JobHandle]:
        """Take jobs, in order.

        Args:
            jobs: The jobs.
            deliver: Takes what comes of them, maybe before this returns.

        Returns:
            A handle for each, with which it can be cancelled.

        Raises:
            MemoryBudgetError: If a job can never fit into the KV memory.
            UnsupportedParameterError: If the model cannot do what a job asks for.
            CancelledError: If the engine is closed.
            EngineDeadError: If the engine's process has ended and cannot be started again.
        """
        ...

    def close(self) -> None:
        """Cancel everything, and free the model. May be called again."""
        ...
