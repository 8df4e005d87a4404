"""From the engine's token ids to text, on the caller's side."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.request import Delta, TokenLogprob
from mlflow_phi3_onnx.engine.base import TokenDelta, TokenScore
from mlflow_phi3_onnx.prompt.stop import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.core.request import Completion, FinishReason, Options, Timings
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["TextAssembler", "joined"]


class TextAssembler:
    """Puts one completion's text together: what follows a stop sequence is dropped."""

    def __init__(self, tokenizer: PromptTokenizer, eos: frozenset[int], options: Options) -> None:
        self._tokenizer = tokenizer
        self._ends = options.ends(eos)
        self._own_text = options.own_text
        self._detokenizer = tokenizer.detokenizer(
            keep_control=options.keep_control_tokens,
            kept=options.kept_tokens,
            own_text=options.own_text,
        )
        self._stop = StopMatcher(options.stop)
        self._ids: list[int] = []
        self._text: list[str] = []
        self._starts: list[int] = []
        self._length = 0
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] = []
        self._reason: FinishReason | None = None
        self._last = TokenDelta(())
        self._timings: Timings | None = None
        self._timed = 0.0

    @property
    def token_count(self) -> int:
        """How many tokens there were so far."""
        return len(self._ids)

    @property
    def finished(self) -> bool:
        """Whether no text follows."""
        return self._reason is not None

    @property
    def timings(self) -> Timings | None:
        """How long it took until now, or until its end; None before the first token."""
        timings = self._timings
        if timings is None or self._last.timings is not None:
            return timings
        return timings._replace(decode=timings.decode + time.monotonic() - self._timed)

    def add(self, delta: TokenDelta) -> None:
        """Take what the engine has delivered."""
        self._last = delta
        if delta.timings is not None:
            self._timings, self._timed = delta.timings, time.monotonic()
        if delta.prompt_logprobs:
            scores = delta.prompt_logprobs
            self._prompt_logprobs += [score and self._logprob(score) for score in scores]
        stop, text = self._stop, self._text
        for place, token in enumerate(delta.token_ids):
            self._ids.append(token)
            self._starts.append(self._length)
            if token in self._ends:
                break
            added = self._detokenizer.add(token)
            self._length += len(added)
            text.append(stop.add(added))
            if delta.logprobs:
                begins = self._own_text and len(self._ids) == 1
                self._logprobs.append(self._logprob(delta.logprobs[place], begins=begins))
            if stop.stopped:
                break
        if stop.stopped:
            self._reason = "stop"
        elif delta.finish_reason:
            text.append(stop.add(self._detokenizer.flush()))
            self._reason = "stop" if stop.stopped else delta.finish_reason
            text.append(stop.flush())

    def take(self) -> Delta:
        """Return what was put together since it was last taken."""
        last = self._last
        delta = Delta(
            "".join(self._text),
            len(self._ids),
            self._reason,
            tuple(self._logprobs),
            tuple(self._prompt_logprobs),
            last.cached_tokens,
            last.drafted_tokens,
            last.accepted_tokens,
            tuple(self._ids) if self._reason else (),
            tuple(self._starts) if self._reason else (),
            self.timings if self._reason else None,
        )
        self._text.clear()
        self._logprobs.clear()
        self._prompt_logprobs.clear()
        return delta

    def _logprob(self, score: TokenScore, *, begins: bool = False) -> TokenLogprob:
        text, raw = self._tokenizer.token_text(score.token_id, begins=begins)
        others = (self._logprob(TokenScore(*other), begins=begins) for other in score.top)
        return TokenLogprob(score.token_id, text, raw, score.logprob, tuple(others))


def joined(deltas: Sequence[Delta], timings: Timings | None) -> Completion:
    """Put the deltas of a completion together, as far as they came."""
    last = deltas[-1] if deltas else Delta("", 0)
    return replace(
        last,
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
        prompt_logprobs=tuple(chain.from_iterable(delta.prompt_logprobs for delta in deltas)),
        timings=timings,
    )
