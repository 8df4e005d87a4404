"""A progress bar for many rows."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["rows_done"]

FEWEST_ROWS = 8
DELAY = 1.0
"""Seconds before the bar is shown: what is done sooner needs none."""


def rows_done(total: int, unit: str = "row") -> AbstractContextManager[tqdm[Any]]:
    """Make a bar that counts rows, to be updated by hand.

    It is shown only on a terminal, for more than a few rows that take a while, and only to the main
    thread: a server's threads would write over each other's.

    Args:
        total: How many rows there are.
        unit: What they are, where they are no rows.
    """
    main = threading.current_thread() is threading.main_thread()
    quiet = total < FEWEST_ROWS or not main
    return tqdm(total=total, unit=unit, delay=DELAY, disable=True if quiet else None, leave=False)
