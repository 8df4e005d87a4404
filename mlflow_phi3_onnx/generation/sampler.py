"""The choice of one sequence's next token from its logits.

Every sequence chooses for itself, with its own random numbers, so the sequences of a batch may
differ in every option, and a seeded sequence is the same whatever runs beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.request import Sampling

__all__ = ["Sampler", "log_softmax"]

_FIRST_CANDIDATES = 256
_SEED_BITS = 64


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
        self._counts = np.zeros(vocab_size, dtype=np.float32) if self._counts_answer else None
        self._seen = None
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen[prompt[prompt < vocab_size]] = True
        bias = sampling.logit_bias
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    @property
    def _counts_answer(self) -> bool:
        return bool(self._sampling.presence_penalty or self._sampling.frequency_penalty)

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
        if not np.isfinite(logits[best]):
            raise GenerationError("The model's logits are not finite numbers.")
        token = best if self._greedy else self._sample(logits, best)
        self._remember(token)
        return token

    def _penalise(self, logits: NDArray[np.float32]) -> None:
        sampling = self._sampling
        if self._seen is not None:
            seen = logits[self._seen]
            penalty = sampling.repetition_penalty
            logits[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts is not None:
            logits -= sampling.frequency_penalty * self._counts
            logits -= sampling.presence_penalty * (self._counts > 0)
        if self._bias.size:
            logits[self._bias_ids] += self._bias
        if size := sampling.no_repeat_ngram_size:
            logits[_repeating(self._tokens, size)] = -np.inf

    def _sample(self, logits: NDArray[np.float32], best: int) -> int:
        sampling = self._sampling
        scaled = (logits - logits[best]) / np.float32(sampling.temperature)
        if sampling.min_p > 0:
            scaled[scaled < np.log(sampling.min_p)] = -np.inf
        if not sampling.top_k and sampling.top_p == 1:
            return int(self._draw(np.exp(scaled)))
        candidates, weights = _likeliest(scaled, sampling.top_k, sampling.top_p)
        return int(candidates[self._draw(weights)])

    def _draw(self, weights: NDArray[np.float32]) -> int:
        total = np.cumsum(weights, dtype=np.float64)
        at = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return min(at, int(np.flatnonzero(weights)[-1]))

    def _remember(self, token: int) -> None:
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        if self._sampling.no_repeat_ngram_size:
            self._tokens.append(token)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural logarithms of probabilities, in double precision."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - np.log(np.exp(shifted).sum())


def _likeliest(
    scaled: NDArray[np.float32], top_k: int, top_p: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the candidates that top_k and then top_p leave, likeliest first, and their weights.

    Only as many tokens are sorted as are needed: a handful hold nearly all probability. Equal
    logits stand in order of their ids.
    """
    size = scaled.size
    wanted = top_k or size
    weights = np.exp(scaled)
    whole = float(weights.sum(dtype=np.float64))
    taken = min(wanted, _FIRST_CANDIDATES, size)
    while True:
        part = np.argpartition(scaled, size - taken)[size - taken :] if taken < size else None
        ids = np.arange(size) if part is None else np.sort(part)
        ids = ids[np.argsort(-scaled[ids], kind="stable")]
        total = np.cumsum(weights[ids], dtype=np.float64)
        if top_k and taken >= min(wanted, size):
            whole = float(total[-1])
        if taken >= min(wanted, size) or (not top_k and total[-1] >= top_p * whole):
            break
        taken = min(taken * 8, wanted, size)
    # The first token always stays; the last one kept is the one that reaches top_p.
    keep = int(np.searchsorted(total, top_p * whole, side="left")) + 1
    ids = ids[: min(keep, len(ids))]
    return ids, weights[ids]


def _repeating(tokens: list[int], size: int) -> list[int]:
    """Return the tokens that would end a run of ``size`` tokens that has occurred before."""
    if len(tokens) < size:
        return []
    head = tokens[len(tokens) - size + 1 :]
    ends = range(len(tokens) - size + 1)
    return [tokens[i + size - 1] for i in ends if tokens[i : i + size - 1] == head]
