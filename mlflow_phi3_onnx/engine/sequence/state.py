"""One sequence while it is generated: its tokens, its choices and its end. It knows no text."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.core.request import Timings
from mlflow_phi3_onnx.engine.base import TokenDelta, TokenScore
from mlflow_phi3_onnx.engine.sequence.processors import build
from mlflow_phi3_onnx.engine.sequence.prompt_lookup import Drafter
from mlflow_phi3_onnx.engine.sequence.sampler import Sampler, log_of_sum, top_k_ids
from mlflow_phi3_onnx.errors import CancelledError, GenAIError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.core.request import FinishReason
    from mlflow_phi3_onnx.engine.base import Job
    from mlflow_phi3_onnx.grammar.compiler import Matcher

__all__ = ["SequenceState"]


class SequenceState:
    """One sequence in a batch, and its job's handle.

    Args:
        job: What is to be generated.
        eos: The ids that end it.
        vocab_size: The width of the logits.
        matcher: Follows the job's grammar, if it has one.
        timeout: Seconds after which it fails, unless it is finished; None waits for ever.
        deliver: Called with each delta, or the error that ended the sequence, from the engine's
            thread; returns whether more is wanted.
        interrupt: Stops its computation, where that is possible, once it is finished.

    Attributes:
        finished: Whether nothing more is to be computed.
        cached_tokens: How many of the prompt's tokens were found in a cache.
    """

    def __init__(
        self,
        job: Job,
        *,
        eos: frozenset[int],
        vocab_size: int,
        matcher: Matcher | None,
        timeout: float | None,
        deliver: Callable[[TokenDelta | GenAIError], bool],
        interrupt: Callable[[SequenceState], None],
    ) -> None:
        options = job.options
        self.prompt = job.prompt
        self.max_tokens = job.max_tokens
        self.options = options
        self.tokens: list[int] = []
        self.finished = False
        self.cached_tokens = 0
        self._came = self._begun = self._prefilled = time.monotonic()
        self.deadline = None if timeout is None else self._came + timeout
        self._streamed = job.streamed
        self._eos = eos
        self._matcher = matcher
        self._processors = build(
            options.sampling,
            job.prompt,
            vocab_size,
            eos=eos,
            min_tokens=options.min_tokens,
            mask=matcher and matcher.mask,
        )
        self._sampler = Sampler(options.sampling, job.index)
        self._plain = self._sampler.greedy and options.top_logprobs is None
        self._drafter: Drafter | None = None
        if options.draft_tokens:
            self._drafter = Drafter([job.draft_source, job.prompt.tolist()], options.draft_tokens)
        self._drafted = 0
        self._accepted = 0
        self._logprobs: list[TokenScore] = []
        self._prompt_logprobs: list[TokenScore | None] = []
        self._delivered = 0
        self._deliver = deliver
        self._interrupt = interrupt
        self._delivering = threading.Lock()
        self._ended = False

    @property
    def most_tokens(self) -> int:
        """How many tokens of KV cache it takes at most, alone."""
        return len(self.prompt) + self.max_tokens

    @property
    def sequence(self) -> NDArray[np.int32]:
        """Prompt and completion so far."""
        return np.concatenate([self.prompt, np.array(self.tokens, dtype=np.int32)])

    @property
    def remaining(self) -> int:
        """How many more tokens it may have."""
        return self.max_tokens - len(self.tokens)

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the one with the highest raw logit, with nothing to report."""
        if not (self._plain and self._processors):
            return self._plain
        # One that is spent, as a minimum of tokens is, does not come back.
        self._processors = tuple(
            processor for processor in self._processors if processor.changes_argmax(self.tokens)
        )
        return not self._processors

    def draft(self) -> list[int]:
        """Look draft tokens up, fewer than may follow, maybe none."""
        return [] if self._drafter is None else self._drafter.draft(self.remaining - 1)

    def take_prompt(self, first: int, logits: NDArray[np.float32]) -> None:
        """Take the logits of a chunk of the prompt, ``(positions, vocabulary)``.

        Args:
            first: The position of the first of them.
            logits: Each position's logits of the token that follows it.
        """
        top = self.options.top_logprobs
        if top is None or not self.options.prompt_logprobs:
            return
        if first == 0:
            self._prompt_logprobs.append(None)
        following = self.prompt[first + 1 : first + 1 + len(logits)].tolist()
        for values, token in zip(logits, following, strict=False):
            self._prompt_logprobs.append(_score(values, token, top))

    def begin(self) -> None:
        """Note that a loop has taken it up."""
        self._begun = self._prefilled = time.monotonic()

    def end_prompt(self) -> None:
        """Begin the completion; without a token to generate, that is its end."""
        self._prefilled = time.monotonic()
        if self.max_tokens == 0:
            self._emit("length")

    def advance(self, logits: NDArray[np.float32], draft: Sequence[int] = ()) -> None:
        """Choose and take the next tokens; if there is none to choose, this sequence alone fails.

        What is chosen is the same with and without a draft: each draft token only gives the logits
        that follow it beforehand.

        Args:
            logits: Raw logits, ``(1 + draft tokens, vocabulary)``: those of the next token, and
                those that follow each draft token. They may be changed.
            draft: The draft tokens.
        """
        known = self._accepted
        self._drafted += len(draft)
        try:
            for place, values in enumerate(logits):
                token = self._choose(values)
                right = place < len(draft) and token == draft[place]
                self._accepted += right
                self.take(token)
                if self.finished or not right:
                    break
        except GenAIError as error:
            self.fail(error)
        if self._drafter is not None and draft:
            self._drafter.adapt(len(draft), self._accepted - known)

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self.is_greedy:
            return int(logits.argmax())
        top = self.options.top_logprobs
        raw = None if top is None else logits.copy()
        for processor in self._processors:
            processor.apply(logits, self.tokens)
        token = self._sampler.choose(logits)
        if self._matcher is not None:
            self._matcher.accept(token)
        if top is not None and raw is not None and token not in self._eos:
            self._logprobs.append(_score(raw, token, top))
        return token

    def take(self, token: int) -> None:
        """Append a token, and see whether it is the last."""
        self.tokens.append(token)
        if self._drafter is not None:
            self._drafter.extend([token])
        if token in self._eos or (self._matcher is not None and self._matcher.done):
            self._emit("stop")
        elif self.remaining <= 0:
            self._emit("length")
        elif self._streamed:
            self._emit()

    def fail(self, error: GenAIError) -> None:
        """End this sequence alone with an error. Any thread may call it."""
        self.finished = True
        self._pass_on(error, last=True)

    def cancel(self) -> None:
        """End this sequence alone: at most one more step is computed. Any thread may call it."""
        if not self.finished:
            self.fail(CancelledError("Generation was cancelled."))
            self._interrupt(self)

    def _emit(self, reason: FinishReason | None = None) -> None:
        """Deliver what is new."""
        delta = TokenDelta(
            tuple(self.tokens[self._delivered :]),
            reason,
            tuple(self._logprobs),
            tuple(self._prompt_logprobs),
            self.cached_tokens,
            self._drafted,
            self._accepted,
            self._timings() if reason or not self._delivered else None,
        )
        self._delivered = len(self.tokens)
        if self._logprobs or self._prompt_logprobs:
            self._logprobs, self._prompt_logprobs = [], []
        self.finished = self.finished or reason is not None
        self._pass_on(delta, last=reason is not None)

    def _timings(self) -> Timings:
        times = (self._came, self._begun, self._prefilled, time.monotonic())
        return Timings(*(end - begin for begin, end in pairwise(times)))

    def _pass_on(self, delta: TokenDelta | GenAIError, *, last: bool) -> None:
        """Deliver, unless the last delta has been."""
        with self._delivering:
            if self._ended:
                return
            self._ended = last
            if not self._deliver(delta):
                self._ended = self.finished = True


def _score(logits: NDArray[np.float32], token: int, top: int) -> TokenScore:
    """Report a token, and the most likely ones at its position, from the raw logits there."""
    total = log_of_sum(logits)
    ids = top_k_ids(logits, top).tolist() if top else []
    others = tuple((other, float(logits[other]) - total) for other in ids)
    return TokenScore(token, float(logits[token]) - total, others)
