"""Sides that take turns, and their ratios turn by turn."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["WARM_UP", "Ratio", "interleaved", "paired"]

T = TypeVar("T")

WARM_UP = -1
"""The number of the turn before the first."""

PAUSE = 0.05
"""Seconds between two sides: threads that still spin after one's work would slow down the other."""


def interleaved(
    sides: Mapping[str, Callable[[int], T]], turns: int, *, pause: float = PAUSE
) -> dict[str, list[T]]:
    """Run every side in turn, and again, in the opposite order every other time.

    So whatever else happens on the machine meets all sides alike. A turn before the first warms
    up, and is not counted.

    Args:
        sides: What to run, by name. Each is called with the number of the turn, -1 to warm up, so
            that it can take other prompts each time: what has been computed once may be in a cache.
        turns: How many turns count.
        pause: Seconds to wait before each call.

    Returns:
        What each side returned, in order.
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(WARM_UP, turns):
        names = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in names:
            time.sleep(pause)
            result = sides[name](turn)
            if turn > WARM_UP:
                results[name].append(result)
    return results


def paired(ours: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Divide the samples of one side by those of the other, turn by turn."""
    return [one / other for one, other in zip(ours, reference, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """How many times the figure of another side one side's is, turn by turn.

    Attributes:
        median: The median of the turns.
        low: The lowest.
        high: The highest.
        samples: That of each turn.
    """

    median: float
    low: float
    high: float
    samples: list[float]

    @classmethod
    def of(cls, samples: list[float]) -> Ratio:
        """Sum up the ratios of turns, of which there is at least one."""
        return cls(statistics.median(samples), min(samples), max(samples), samples)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)
