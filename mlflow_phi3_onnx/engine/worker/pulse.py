"""Finds a worker whose engine does not come out of a step.

How long a step may take, nobody knows: onnxruntime-genai computes the prompts of a batch in one,
and holds the interpreter's lock. But where every request has a deadline, a step that takes longer
than that is one that nobody waits for.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_phi3_onnx.engine.worker.connection import Connection

__all__ = ["Pulse"]

_logger = logging.getLogger(__name__)

GRACE_S = 30.0
"""Seconds that a step may take beyond the deadline of every request in it."""

_BEATS = 8
"""How often a worker is asked within the time that it has."""


class Pulse:
    """Asks a worker for how long its engine has been in a step, in a thread of its own.

    Args:
        connection: The worker's.
        longest: Seconds after which any sequence fails.
        stuck: Called, once, when a step takes longer than that and some grace, or the worker has
            not answered for so long. What this process itself slept through is not counted.
    """

    def __init__(self, connection: Connection, longest: float, stuck: Callable[[], object]) -> None:
        self._connection = connection
        self._most = longest + GRACE_S
        self._stuck = stuck
        self._over = threading.Event()
        self._seconds = 0.0
        threading.Thread(target=self._run, name="onnx-genai-pulse", daemon=True).start()

    def answered(self, seconds: float) -> None:
        """Take note of the seconds since the engine's step began; 0 where it is in none."""
        self._seconds = seconds

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()

    def _run(self) -> None:
        interval = self._most / _BEATS
        while not self._over.wait(interval):
            self._seconds += interval
            if self._seconds > self._most:
                _logger.error(
                    "The engine's worker process is ended: a step has taken %.0f s, longer than any"
                    " request may.",
                    self._seconds,
                )
                self._stuck()
                return
            self._connection.send("beat")
