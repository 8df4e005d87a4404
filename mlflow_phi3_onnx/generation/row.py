"""One sequence while it is generated: its tokens, its choices, its text and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.generation.sampler import Sampler, log_softmax
from mlflow_phi3_onnx.generation.stop import StopMatcher
from mlflow_phi3_onnx.request import Delta, FinishReason, Options, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Row"]


class Row:
    """One sequence in a batch.

    Args:
        prompt: Token ids.
        max_tokens: The most tokens to generate, at least 1.
        options: What the request asks for.
        tokenizer: The model's tokenizer.
        eos: The ids that end an answer.
        vocab_size: The width of the logits.
        sink: Called with each piece of the answer, or the error that ended it, from the engine's
            thread.
        index: Which of the request's answers this is.
    """

    def __init__(
        self,
        prompt: NDArray[np.int32],
        max_tokens: int,
        options: Options,
        *,
        tokenizer: PromptTokenizer,
        eos: frozenset[int],
        vocab_size: int,
        sink: Callable[[Delta | GenAIError], None],
        index: int = 0,
    ) -> None:
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.tokens: list[int] = []
        self.finished = False
        self.cancelled = False
        self.cached_tokens = 0
        self._options = options
        self._tokenizer = tokenizer
        self._eos = eos
        self._sink = sink
        self._detokenizer = tokenizer.detokenizer(keep_control=options.keep_control_tokens)
        self._stop = StopMatcher(options.stop)
        self._matcher = None
        if options.grammar is not None:
            self._matcher = tokenizer.grammars(vocab_size, eos).matcher(options.grammar)
        reports = options.top_logprobs is not None
        self._plain = options.sampling.plain_greedy and not reports and self._matcher is None
        self._sampler = Sampler(options.sampling, prompt, vocab_size, index)
        self._logprobs: list[TokenLogprob] = []

    @property
    def over(self) -> bool:
        """Whether nothing more is to be computed for this sequence."""
        return self.finished or self.cancelled

    @property
    def reports_logprobs(self) -> bool:
        """Whether the request asks for log-probabilities."""
        return self._options.top_logprobs is not None

    @property
    def sequence(self) -> NDArray[np.int32]:
        """Prompt and answer so far."""
        return np.concatenate([self.prompt, np.array(self.tokens, dtype=np.int32)])

    @property
    def remaining(self) -> int:
        """How many more tokens it may have."""
        return self.max_tokens - len(self.tokens)

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is the one with the highest raw logit, with nothing to report."""
        return self._plain and len(self.tokens) >= self._options.min_tokens

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token from raw logits, ``(vocabulary,)``, which may be changed.

        Raises:
            GenAIError: If there is no token to choose; this row alone must then fail.
        """
        top = self._options.top_logprobs
        reported = None if top is None else log_softmax(logits)
        banned = tuple(self._eos) if len(self.tokens) < self._options.min_tokens else ()
        token = self._sampler.choose(logits, banned, self._matcher and self._matcher.mask)
        if self._matcher is not None:
            self._matcher.accept(token)
        if reported is not None and top is not None:
            self._logprobs.append(self._logprob(token, reported, top))
        return token

    def take(self, token: int) -> None:
        """Append a token, pass on the text that it completes, and see whether it is the last."""
        self.tokens.append(token)
        if token in self._eos:
            self._logprobs = self._logprobs[: len(self._logprobs) - 1]
            self._end("stop", self._stop.add(self._detokenizer.flush()) + self._stop.flush())
            return
        text = self._stop.add(self._detokenizer.add(token))
        complete = self._matcher is not None and self._matcher.done
        if not self._stop.stopped and (complete or self.remaining <= 0):
            text += self._stop.add(self._detokenizer.flush())
            if not self._stop.stopped:
                self._end("stop" if complete else "length", text + self._stop.flush())
                return
        if self._stop.stopped:
            self._end("stop", text)
            return
        self._emit(text)

    def fail(self, error: GenAIError) -> None:
        """End this sequence alone with an error."""
        self.cancelled = True
        self._sink(error)

    def _end(self, reason: FinishReason, text: str) -> None:
        self.finished = True
        self._emit(text, reason)

    def _emit(self, text: str, reason: FinishReason | None = None) -> None:
        logprobs, self._logprobs = tuple(self._logprobs), []
        self._sink(
            Delta(text, len(self.tokens), reason, logprobs, cached_tokens=self.cached_tokens)
        )

    def _logprob(self, token: int, logprobs: NDArray[np.float64], top: int) -> TokenLogprob:
        best = np.argsort(-logprobs, kind="stable")[:top] if top else []
        others = tuple(self._entry(int(i), logprobs) for i in best)
        return self._entry(token, logprobs, others)

    def _entry(
        self, token: int, logprobs: NDArray[np.float64], top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        text, raw = self._tokenizer.token_text(token)
        return TokenLogprob(token, text, raw, float(logprobs[token]), top)
