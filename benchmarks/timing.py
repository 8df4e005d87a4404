"""Sides that take turns, and the numbers that come of it."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["interleaved", "paired", "percentile", "timed"]

T = TypeVar("T")

WARM_UP = -1
PAUSE = 0.05
"""Seconds between two sides: threads that still spin after one's work would slow down the other."""


def interleaved(
    sides: Mapping[str, Callable[[int], T]], repeats: int, *, pause: float = PAUSE
) -> dict[str, list[T]]:
    """Run every side in turn, and again, in the opposite order every other time.

    So whatever else happens on the machine meets all sides alike. A turn before the first warms
    up, and is not counted.

    Args:
        sides: What to run, by name. Each is called with the number of the turn, -1 to warm up, so
            that it can take other prompts each time: what has been computed once may be in a cache.
        repeats: How many turns count.
        pause: Seconds to wait before each call.

    Returns:
        What each side returned, in order.
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(WARM_UP, repeats):
        names = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in names:
            time.sleep(pause)
            result = sides[name](turn)
            if turn > WARM_UP:
                results[name].append(result)
    return results


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def paired(ours: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Divide the samples of one side by those of the other, turn by turn."""
    return [one / other for one, other in zip(ours, reference, strict=True)]


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile, as a value between the two nearest samples."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
