"""The choice of one sequence's next token from its logits.

Every sequence chooses for itself, with its own random numbers, so the sequences of a batch may
differ in every option, and a seeded sequence is the same whatever runs beside it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.request import Sampling

__all__ = ["Sampler", "likeliest", "log_of_sum"]

_FIRST_CANDIDATES = 256
_SEED_BITS = 64
_BLOCK = 128
"""How many weights are summed together, where one of many is drawn."""


class Sampler:
    """Chooses tokens for one sequence.

    Args:
        sampling: The options.
        prompt: The prompt's token ids; the repetition penalty and the n-gram ban count them.
        vocab_size: The width of the logits.
        index: Which answer to the same request this is: each draws different random numbers.
    """

    def __init__(
        self, sampling: Sampling, prompt: NDArray[np.int32], vocab_size: int, index: int = 0
    ) -> None:
        self._sampling = sampling
        self._greedy = sampling.temperature == 0 or sampling.top_k == 1
        seed = None if sampling.seed is None else [sampling.seed % (1 << _SEED_BITS), index]
        self._random = np.random.default_rng(seed)
        self._tokens: list[int] = prompt.tolist() if sampling.no_repeat_ngram_size else []
        self._answer = _Counts()
        self._seen = _Counts()
        if sampling.repetition_penalty != 1:
            for token in np.unique(prompt[prompt < vocab_size]).tolist():
                self._seen.add(token)
        bias = sampling.logit_bias
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    def choose(
        self,
        logits: NDArray[np.float32],
        banned: Sequence[int] = (),
        mask: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> int:
        """Choose the next token.

        Args:
            logits: Raw logits, ``(vocabulary,)``. May be changed.
            banned: Ids that must not be chosen.
            mask: Sets the logits of what a grammar forbids to minus infinity, in place.

        Raises:
            GenerationError: If the logits leave nothing to choose from.
        """
        self._penalise(logits)
        if banned:
            logits[list(banned)] = -np.inf
        if mask is not None:
            mask(logits)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise GenerationError("The model's logits are not finite numbers.")
        token = best if self._greedy else self._sample(logits, best)
        self._remember(token)
        return token

    def _penalise(self, logits: NDArray[np.float32]) -> None:
        sampling = self._sampling
        if seen := len(self._seen):
            ids = self._seen.ids[:seen]
            values = logits[ids]
            penalty = np.float32(sampling.repetition_penalty)
            logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if held := len(self._answer):
            counts = self._answer.counts[:held]
            logits[self._answer.ids[:held]] -= np.float32(
                sampling.frequency_penalty
            ) * counts + np.float32(sampling.presence_penalty)
        if self._bias.size:
            logits[self._bias_ids] += self._bias
        if size := sampling.no_repeat_ngram_size:
            logits[_repeating(self._tokens, size)] = -np.inf

    def _sample(self, logits: NDArray[np.float32], best: int) -> int:
        sampling = self._sampling
        scaled = logits - logits[best]
        scaled /= np.float32(sampling.temperature)
        if sampling.min_p > 0:
            scaled[scaled < math.log(sampling.min_p)] = -np.inf
        if not sampling.top_k and sampling.top_p == 1:
            return self._draw(np.exp(scaled, out=scaled))
        candidates, weights = _candidates(scaled, sampling.top_k, sampling.top_p)
        return int(candidates[self._draw(weights)])

    def _draw(self, weights: NDArray[np.float32]) -> int:
        """Draw a place, each as likely as its weight: first a block of them, then one within."""
        blocks = np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK))
        total = np.cumsum(blocks, dtype=np.float64)
        at = self._random.random() * total[-1]
        block = min(int(np.searchsorted(total, at, side="right")), int(np.flatnonzero(blocks)[-1]))
        inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
        at -= total[block - 1] if block else 0.0
        place = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), at, side="right"))
        return block * _BLOCK + min(place, int(np.flatnonzero(inside)[-1]))

    def _remember(self, token: int) -> None:
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            self._seen.add(token)
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._answer.add(token)
        if sampling.no_repeat_ngram_size:
            self._tokens.append(token)


class _Counts:
    """How often each of a few ids has occurred, in arrays: most of a vocabulary never does."""

    def __init__(self) -> None:
        self.ids = np.zeros(64, dtype=np.int64)
        self.counts = np.zeros(64, dtype=np.float32)
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == self.ids.size:
            self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
        self.ids[place] = token
        self.counts[place] += 1


def log_of_sum(logits: NDArray[np.float32]) -> float:
    """Return the logarithm of the sum of the logits' exponentials.

    A token's natural logarithm of probability is its logit less this.
    """
    highest = float(logits.max())
    return highest + math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))


def likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the ids of the highest logits, highest first; equal ones in order of their ids."""
    size = logits.size
    if count >= size:
        ids = np.arange(size)
    else:
        least = np.partition(logits, size - count)[size - count]
        ids = np.flatnonzero(logits >= least if math.isfinite(least) else np.isfinite(logits))
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def _candidates(
    scaled: NDArray[np.float32], top_k: int, top_p: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the candidates that top_k and then top_p leave, likeliest first, and their weights.

    Only as many tokens are sorted as are needed: a handful hold nearly all probability.
    """
    size = scaled.size
    whole = 0.0 if top_k else float(np.exp(scaled).sum(dtype=np.float64))
    taken = min(top_k or _FIRST_CANDIDATES, size)
    while True:
        ids = likeliest(scaled, taken)
        weights = np.exp(scaled[ids])
        total = np.cumsum(weights, dtype=np.float64)
        if top_k or taken == size or total[-1] >= top_p * whole:
            break
        taken = min(taken * 8, size)
    # The first token always stays; the last one kept is the one that reaches top_p.
    wanted = top_p * (whole or float(total[-1]))
    keep = int(np.searchsorted(total, wanted, side="left")) + 1
    return ids[:keep], weights[:keep]


def _repeating(tokens: list[int], size: int) -> list[int]:
    """Return the tokens that would end a run of ``size`` tokens that has occurred before."""
    if len(tokens) < size:
        return []
    head = tokens[len(tokens) - size + 1 :]
    ends = range(len(tokens) - size + 1)
    return [tokens[i + size - 1] for i in ends if tokens[i : i + size - 1] == head]
