"""Marks in text that arrives in deltas."""

from __future__ import annotations

__all__ = ["begun"]


def begun(text: str, mark: str) -> int:
    """Measure the longest end of a text that is a beginning of a mark, but not all of it."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
