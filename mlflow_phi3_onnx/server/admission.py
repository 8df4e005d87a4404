"""Which requests are worked on, which wait, and which are refused."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.server.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Admission"]

LONGEST_ADVICE = 60
"""The most seconds that a client is told to wait."""

_WEIGHT = 0.2


class Admission:
    """A bounded queue before a bounded number of places; first come, first served.

    Used in one event loop, so that nothing happens between a look and a step.

    Args:
        places: How many requests are worked on at once.
        room: How many may wait.

    Attributes:
        running: How many are worked on.
    """

    def __init__(self, places: int, room: int) -> None:
        self._places = places
        self._room = room
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0  # that a request takes, of late

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the next request is refused."""
        taken = self.running >= self._places or bool(self._waiting)
        return taken and len(self._waiting) >= self._room

    def check(self) -> None:
        """Check that a request would be worked on, or may wait.

        Raises:
            QueueFullError: If no more may wait.
        """
        if self.full:
            raise QueueFullError(
                f"The server works on {self.running:,} requests and {len(self._waiting):,} wait,"
                " which is all that it takes. Try again later.",
                self._advice(),
            )

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for a place, and hold it.

        Raises:
            QueueFullError: If no more may wait.
        """
        await self._enter()
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds += _WEIGHT * (time.monotonic() - begun - self._seconds)
            self._leave()

    async def _enter(self) -> None:
        if self.running < self._places and not self._waiting:
            self.running += 1
            return
        self.check()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place had just been given
            else:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        """Give a place to the first that waits, or back."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _advice(self) -> int:
        """Estimate the seconds until there is room again."""
        turns = (len(self._waiting) + 1) / self._places
        return min(LONGEST_ADVICE, max(1, math.ceil(turns * self._seconds)))
