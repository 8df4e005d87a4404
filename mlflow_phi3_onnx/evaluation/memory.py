"""The most memory that processes take while something runs."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

__all__ = ["PeakMemory", "own_children"]

_SECONDS = 0.02
"""How often is looked: the kernel's own high-water mark knows no beginning."""


class PeakMemory:
    """Watches resident memory in the background, as a context manager.

    Args:
        processes: Lists whose memory it is; by default this process and all below it, for a model
            may run in a worker process. Memory that several share counts for each.

    Attributes:
        bytes: The most that they had together.
    """

    def __init__(self, processes: Callable[[], Sequence[psutil.Process]] | None = None) -> None:
        self.bytes = 0
        self._processes = processes or _own
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        together = 0
        for process in self._processes():
            with suppress(psutil.Error):  # it has ended
                together += process.memory_info().rss
        self.bytes = max(self.bytes, together)


def own_children() -> list[psutil.Process]:
    """List the processes below this one."""
    return psutil.Process().children(recursive=True)


def _own() -> list[psutil.Process]:
    return [psutil.Process(), *own_children()]
