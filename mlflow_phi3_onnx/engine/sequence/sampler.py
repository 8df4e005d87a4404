"""The choice of one sequence's next token from its logits.

Every sequence chooses for itself, with its own random numbers, so the sequences of a batch may
differ in every option, and a seeded sequence is the same whatever runs beside it.

What is drawn from is found by groups and blocks, and not by sorting the vocabulary: that is where
the time of a sampled token goes, as the ``featured-token`` row of ``python -m benchmarks --only
tokens`` shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlflow_phi3_onnx.errors import GenerationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.core.request import Sampling

__all__ = ["Sampler", "log_of_sum", "top_k_ids"]

_FIRST_CANDIDATES = 256
_SEED_BITS = 64
_GROUP = 64
"""Of how many logits the highest is taken, where a few of many are looked for."""

_BLOCK = 128
"""How many weights are summed together, where one of many is looked for."""


class Sampler:
    """Draws the next token from logits that were processed.

    Args:
        sampling: The options.
        index: Which completion of its request this is: each draws other random numbers.

    Attributes:
        greedy: Whether it always takes the most likely token.
    """

    def __init__(self, sampling: Sampling, index: int = 0) -> None:
        self._sampling = sampling
        self.greedy = np.float32(sampling.temperature) == 0 or sampling.top_k == 1
        seed = None if sampling.seed is None else [sampling.seed % (1 << _SEED_BITS), index]
        self._random = np.random.default_rng(seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token.

        Args:
            logits: ``(vocabulary,)``.

        Raises:
            GenerationError: If the logits leave nothing to choose from.
        """
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise GenerationError("The model's logits are not finite numbers.")
        return best if self.greedy else self._sample(logits, best)

    def _sample(self, logits: NDArray[np.float32], best: int) -> int:
        sampling = self._sampling
        scaled = logits - logits[best]
        with np.errstate(over="ignore"):
            scaled /= np.float32(sampling.temperature)
        if sampling.min_p > 0:
            scaled[scaled < math.log(sampling.min_p)] = -np.inf
        if sampling.top_k:
            ids = top_k_ids(scaled, sampling.top_k)
            weights = np.exp(scaled[ids])
            keep = _place(weights, sampling.top_p * float(weights.sum(dtype=np.float64)))
            return int(ids[self._draw(weights[: keep + 1])])
        if sampling.top_p < 1:
            ids, weights = _nucleus(scaled, sampling.top_p)
            return int(ids[self._draw(weights)])
        return self._draw(np.exp(scaled, out=scaled))

    def _draw(self, weights: NDArray[np.float32]) -> int:
        """Draw a place, each as likely as its weight."""
        whole = float(weights.sum(dtype=np.float64))
        place = _place(weights, self._random.random() * whole, side="right")
        # A rounded sum may be passed: then it is the last place that has a weight.
        return place if place < weights.size else int(np.flatnonzero(weights)[-1])


def log_of_sum(logits: NDArray[np.float32]) -> float:
    """Return the logarithm of the sum of the logits' exponentials.

    A token's natural logarithm of probability is its logit less this.
    """
    highest = logits.max()
    shifted = logits - highest
    return float(highest) + math.log(float(np.exp(shifted, out=shifted).sum(dtype=np.float64)))


def top_k_ids(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the ids of the highest logits, highest first; equal ones in order of their ids.

    There are fewer than asked for where all others are minus infinity.
    """
    least = _at_most_the_last_of(logits, count)
    ids = np.flatnonzero(logits >= least if math.isfinite(least) else logits > -np.inf)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def _at_most_the_last_of(logits: NDArray[np.float32], count: int) -> float:
    """Return a bound that the highest logits, so many, all reach, and few others do."""
    groups = logits.size // _GROUP
    if count <= groups // 2:
        # As many groups have a highest logit that reaches it.
        highest = logits[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        return float(np.partition(highest, groups - count)[groups - count])
    # Many equal values, as minus infinity is after a mask, would make a partition slow.
    finite = logits[logits > -np.inf]
    if count >= finite.size:
        return -math.inf
    return float(np.partition(finite, finite.size - count)[finite.size - count])


def _nucleus(
    scaled: NDArray[np.float32], top_p: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the fewest most likely tokens that have a share of all probability, and their weights.

    A handful of tokens hold nearly all probability, as a rule; only where they do not is the whole
    vocabulary sorted.
    """
    weights = np.exp(scaled)
    wanted = top_p * float(weights.sum(dtype=np.float64))
    ids = top_k_ids(scaled, _FIRST_CANDIDATES)
    keep = _place(weights[ids], wanted)
    if keep < ids.size:
        # The first token always stays; the last one kept is the one that reaches top_p.
        ids = ids[: keep + 1]
        return ids, weights[ids]
    ordered = np.sort(weights)[::-1]
    keep = min(_place(ordered, wanted), ordered.size - 1)
    above = np.flatnonzero(weights > ordered[keep])
    equal = np.flatnonzero(weights == ordered[keep])[: keep + 1 - above.size]
    ids = np.concatenate([above, equal])
    return ids, weights[ids]


def _place(
    weights: NDArray[np.float32], wanted: float, side: Literal["left", "right"] = "left"
) -> int:
    """Return the place at which the sum of weights reaches (right: passes) what is wanted.

    Where it never does, that is the place behind the last one.
    """
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK)), dtype=np.float64)
    block = int(np.searchsorted(sums, wanted, side=side))
    if block == sums.size:
        return weights.size
    before = float(sums[block - 1]) if block else 0.0
    inside = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + int(np.searchsorted(inside, wanted - before, side=side))
