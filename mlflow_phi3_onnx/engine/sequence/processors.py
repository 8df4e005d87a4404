"""What changes a sequence's logits before its next token is chosen.

Each processor says whether it can change which token is the most likely one. Where none does, a
greedy sequence takes the raw logits' argmax, or lets the runtime choose.

They work in place on the few ids that they concern: most of a vocabulary never occurs in a
sequence, and the ``featured-token`` row of ``python -m benchmarks --only tokens`` shows what a
pass over 32,064 logits costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.core.request import Sampling

__all__ = ["LogitsProcessor", "build"]


class LogitsProcessor(ABC):
    """Changes the logits of one sequence; each sequence has processors of its own."""

    def changes_argmax(self, ids: Sequence[int]) -> bool:  # noqa: ARG002 - most always may
        """Whether the most likely token may be another one, now or later.

        Args:
            ids: The tokens generated so far.
        """
        return True

    @abstractmethod
    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:
        """Change the logits of the next token in place.

        Args:
            logits: ``(vocabulary,)``.
            ids: The tokens generated so far.
        """


def build(
    sampling: Sampling,
    prompt: NDArray[np.int32],
    vocab_size: int,
    *,
    eos: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    mask: Callable[[NDArray[np.float32]], None] | None = None,
) -> tuple[LogitsProcessor, ...]:
    """Make the processors of one sequence, in the order in which they are applied.

    Args:
        sampling: How tokens are chosen.
        prompt: The prompt's token ids; the repetition penalty and the n-gram ban count them.
        vocab_size: The width of the logits.
        eos: The ids that end the sequence.
        min_tokens: The fewest tokens before one of them may be chosen.
        mask: Sets the logits of what a grammar forbids to minus infinity, in place.
    """
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        processors.append(_RepetitionPenalty(sampling.repetition_penalty, prompt, vocab_size))
    if sampling.presence_penalty or sampling.frequency_penalty:
        processors.append(_OccurrencePenalty(sampling.presence_penalty, sampling.frequency_penalty))
    if sampling.logit_bias:
        processors.append(_LogitBias(sampling.logit_bias))
    if sampling.no_repeat_ngram_size:
        processors.append(_NoRepeatNgram(sampling.no_repeat_ngram_size, prompt))
    if min_tokens:
        processors.append(_MinTokens(min_tokens, eos))
    if mask is not None:
        processors.append(_GrammarMask(mask))
    return tuple(processors)


_LIMITS = np.finfo(np.float32)


class _RepetitionPenalty(LogitsProcessor):
    """Divides positive and multiplies negative logits of the tokens of prompt and completion."""

    def __init__(self, penalty: float, prompt: NDArray[np.int32], vocab_size: int) -> None:
        self._penalty = max(np.float32(penalty), _LIMITS.tiny)
        self._seen = _Counts(np.unique(prompt[prompt < vocab_size]).tolist())

    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:
        seen, _ = self._seen.up_to(ids)
        values = logits[seen]
        with np.errstate(over="ignore"):
            values = np.where(values > 0, values / self._penalty, values * self._penalty)
        logits[seen] = np.minimum(values, _LIMITS.max)


class _OccurrencePenalty(LogitsProcessor):
    """Lowers the logits of the completion's tokens: once, and each time that they occur."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence = np.float32(presence)
        self._frequency = np.float32(frequency)
        self._seen = _Counts()

    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:
        seen, counts = self._seen.up_to(ids)
        logits[seen] -= self._frequency * counts + self._presence


class _LogitBias(LogitsProcessor):
    """Adds to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:  # noqa: ARG002
        logits[self._ids] += self._bias


class _NoRepeatNgram(LogitsProcessor):
    """Forbids tokens that would end a run of ``size`` tokens that has occurred before."""

    def __init__(self, size: int, prompt: NDArray[np.int32]) -> None:
        self._size = size
        self._prompt = prompt.tolist()

    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:
        tokens, size = [*self._prompt, *ids], self._size
        if len(tokens) < size:
            return
        head = tokens[len(tokens) - size + 1 :]
        ends = range(size - 1, len(tokens))
        logits[[tokens[i] for i in ends if tokens[i - size + 1 : i] == head]] = -np.inf


class _MinTokens(LogitsProcessor):
    """Forbids end-of-sequence tokens until there are so many others."""

    def __init__(self, fewest: int, eos: frozenset[int]) -> None:
        self._fewest = fewest
        self._eos = list(eos)

    def changes_argmax(self, ids: Sequence[int]) -> bool:
        return len(ids) < self._fewest

    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:
        if len(ids) < self._fewest:
            logits[self._eos] = -np.inf


class _GrammarMask(LogitsProcessor):
    """Forbids what a grammar does."""

    def __init__(self, mask: Callable[[NDArray[np.float32]], None]) -> None:
        self._mask = mask

    def apply(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:  # noqa: ARG002
        self._mask(logits)


class _Counts:
    """How often each of a few ids has occurred, in arrays."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        self._places: dict[int, int] = {}
        self._taken = 0
        for token in ids:
            self._add(token)

    def up_to(self, ids: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Count the tokens that are new among these, and return all ids with their counts."""
        for token in ids[self._taken :]:
            self._add(token)
        self._taken = len(ids)
        known = len(self._places)
        return self._ids[:known], self._counts[:known]

    def _add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == self._ids.size:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
