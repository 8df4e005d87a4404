"""One sequence while it is generated: its tokens, its choices, its text and its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.core.request import Delta, FinishReason, Options, TokenLogprob
from mlflow_phi3_onnx.engine.sequence.logprobs import LogprobReader
from mlflow_phi3_onnx.engine.sequence.prompt_lookup import Drafter
from mlflow_phi3_onnx.engine.sequence.sampler import Sampler
from mlflow_phi3_onnx.engine.sequence.stop import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Row"]


class Row:
    """One sequence in a batch.

    Args:
        prompt: Token ids.
        max_tokens: The most tokens to generate; 0 only where the prompt is to be scored.
        options: What the request asks for.
        tokenizer: The model's tokenizer.
        eos: The ids that end an answer.
        vocab_size: The width of the logits.
        sink: Called with each piece of the answer, or the error that ended it, from the engine's
            thread.
        index: Which of the request's answers this is.
        in_pieces: Whether each piece is wanted as it is written, or all of them as one at the end.
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
        in_pieces: bool = True,
    ) -> None:
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.tokens: list[int] = []
        self.finished = False
        self.cancelled = False
        self.cached_tokens = 0
        self.adapter = options.adapter
        self.scores_prompt = options.prompt_logprobs
        self.deadline = None if options.timeout is None else time.monotonic() + options.timeout
        self._options = options
        self._eos = eos
        self._sink = sink
        self._in_pieces = in_pieces
        self._detokenizer = tokenizer.detokenizer(keep_control=options.keep_control_tokens)
        self._stop = StopMatcher(options.stop)
        self._matcher = None
        if options.grammar is not None:
            self._matcher = tokenizer.grammars(vocab_size, eos).matcher(options.grammar)
        self._reader = None
        if options.top_logprobs is not None:
            self._reader = LogprobReader(tokenizer, options.top_logprobs)
        self._plain = options.sampling.plain_greedy and not (self._reader or self._matcher)
        self._sampler = Sampler(options.sampling, prompt, vocab_size, index)
        self._drafter = None
        if options.draft_tokens:
            predicted = tokenizer.encode(options.prediction or "").tolist()
            self._drafter = Drafter([predicted, prompt.tolist()], options.draft_tokens)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] = []

    @property
    def over(self) -> bool:
        """Whether nothing more is to be computed for this sequence."""
        return self.finished or self.cancelled

    @property
    def sequence(self) -> NDArray[np.int32]:
        """Prompt and answer so far."""
        return np.concatenate([self.prompt, np.array(self.tokens, dtype=np.int32)])

    @property
    def remaining(self) -> int:
        """How many more tokens it may have."""
        return self.max_tokens - len(self.tokens)

    @property
    def drafts(self) -> bool:
        """Whether tokens are guessed ahead."""
        return self._drafter is not None

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is the one with the highest raw logit, with nothing to report."""
        return self._plain and len(self.tokens) >= self._options.min_tokens

    def draft(self) -> list[int]:
        """Guess the next tokens, fewer than may follow, maybe none."""
        return [] if self._drafter is None else self._drafter.guess(self.remaining - 1)

    def take_prompt(self, first: int, logits: NDArray[np.float32]) -> None:
        """Take the logits of a piece of the prompt, ``(positions, vocabulary)``.

        Args:
            first: The position of the first of them.
            logits: Each position's logits of the token that follows it.
        """
        if self._reader is None or not self.scores_prompt:
            return
        if first == 0:
            self._prompt_logprobs.append(None)
        following = self.prompt[first + 1 : first + 1 + len(logits)].tolist()
        for row, token in zip(logits, following, strict=False):
            self._prompt_logprobs.append(self._reader.at(row)(token))

    def end_prompt(self) -> None:
        """Begin the answer; without a token to generate, that is its end."""
        if self.max_tokens == 0:
            self._end("length", "")

    def advance(self, logits: NDArray[np.float32], draft: Sequence[int] = ()) -> None:
        """Choose and take the next tokens.

        What is chosen is the same with and without a draft: each guess only gives the logits that
        follow it beforehand.

        Args:
            logits: Raw logits, ``(1 + guesses, vocabulary)``: those of the next token, and those
                that follow each guess. They may be changed.
            draft: The guesses.

        Raises:
            GenAIError: If there is no token to choose; this row alone must then fail.
        """
        drafter = self._drafter
        if drafter is not None:
            drafter.drafted += len(draft)
        accepted = 0
        for place, row in enumerate(logits):
            token = self.choose(row)
            right = place < len(draft) and token == draft[place]
            if drafter is not None and right:
                drafter.accepted += 1
                accepted += 1
            self.take(token)
            if self.over or not right:
                break
        if drafter is not None and draft:
            drafter.adapt(len(draft), accepted)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token from raw logits, ``(vocabulary,)``, which may be changed.

        Raises:
            GenAIError: If there is no token to choose; this row alone must then fail.
        """
        if self.takes_likeliest:
            return int(logits.argmax())
        report = self._reader.at(logits) if self._reader is not None else None
        banned = tuple(self._eos) if len(self.tokens) < self._options.min_tokens else ()
        token = self._sampler.choose(logits, banned, self._matcher and self._matcher.mask)
        if self._matcher is not None:
            self._matcher.accept(token)
        if report is not None and token not in self._eos:
            self._logprobs.append(report(token))
        return token

    def take(self, token: int) -> None:
        """Append a token, pass on the text that it completes, and see whether it is the last."""
        self.tokens.append(token)
        if self._drafter is not None:
            self._drafter.extend([token])
        if token in self._eos:
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
        elif self._in_pieces:
            self._emit(text)
        else:
            self._text.append(text)

    def fail(self, error: GenAIError) -> None:
        """End this sequence alone with an error."""
        self.cancelled = True
        self._sink(error)

    def _end(self, reason: FinishReason, text: str) -> None:
        self.finished = True
        self._emit("".join([*self._text, text]), reason)

    def _emit(self, text: str, reason: FinishReason | None = None) -> None:
        logprobs, self._logprobs = tuple(self._logprobs), []
        of_prompt, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        self._sink(
            Delta(
                text,
                len(self.tokens),
                reason,
                logprobs,
                of_prompt,
                self.cached_tokens,
                self._drafter.drafted if self._drafter else 0,
                self._drafter.accepted if self._drafter else 0,
                () if reason is None else tuple(self.tokens),
            )
        )
