"""How much of a prompt is computed: what was not computed before, a chunk at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MIN_COMPUTED", "MIN_PREFIX", "ChunkSize", "common_prefix"]

MIN_PREFIX = 8
"""The fewest tokens that are worth finding again."""

MIN_COMPUTED = 2
"""The fewest tokens of a prompt that are computed at once.

ONNX Runtime computes a single token with another kernel, whose logits differ in the last bits: a
sampled completion would not always be the same with and without a cache or chunks.
"""

FIRST = 64
"""How many tokens are computed at once before the model's speed is known."""

MIN_CHUNK = 32
"""The fewest tokens that are computed at once, where a prompt has more: fewer use a processor
badly."""

MAX_CHUNK = 512
"""The most: more gain nothing, and the logits of every one take memory."""

SHARED = 0.15
"""Seconds that a chunk may take while others wait for their turn."""

ALONE = 0.5
"""Seconds that a chunk may take while nobody else does."""


def common_prefix(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Count the tokens that two sequences begin with alike."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if different.size else size


class ChunkSize:
    """Cuts prompts by time, from the speed at which the last chunk was computed."""

    def __init__(self) -> None:
        self._tokens_per_second = 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        """Take note of how long a chunk took; small ones tell nothing of large ones."""
        if tokens >= MIN_CHUNK and seconds > 0:
            self._tokens_per_second = tokens / seconds

    def next(self, left: int, *, alone: bool) -> int:
        """Settle how many of the tokens that are left to compute at once.

        Args:
            left: How many tokens of the prompt are not computed yet, at least 1.
            alone: Whether nobody else waits for a turn.
        """
        seconds = ALONE if alone else SHARED
        wanted = int(self._tokens_per_second * seconds) or FIRST
        size = min(max(wanted, MIN_CHUNK), MAX_CHUNK)
        if left <= size:
            return left
        # The rest must not be a single token.
        return size - (MIN_COMPUTED - 1) if left - size < MIN_COMPUTED else size
