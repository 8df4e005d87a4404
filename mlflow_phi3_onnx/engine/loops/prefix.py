"""Beginnings that sequences have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MIN_PREFIX", "common_prefix"]

MIN_PREFIX = 8
"""The fewest tokens that are worth finding again."""


def common_prefix(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Count the tokens that two sequences begin with alike."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if different.size else size
