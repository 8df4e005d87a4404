"""Jobs that wait for room, in the order in which they are to begin."""

from __future__ import annotations

import heapq
from bisect import insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from mlflow_phi3_onnx.engine.sequence.state import SequenceState

__all__ = ["WaitingJobs"]

LOOKED_AT = 256
"""How many of those that wait a loop is shown: a step costs the same however many there are."""


class WaitingJobs:
    """Jobs in turns: one of each request that waits, then the next of each.

    It is start-time fair queueing (Goyal, Vin and Cheng, 1996): a job's turn is its place in its
    request, counted from the turn that has come when the request arrives. So a request of many
    jobs does not keep those out that come after it, and none of its jobs is overtaken for ever by
    requests that come later.
    """

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, SequenceState]] = []
        self._deadlines: list[tuple[float, int, SequenceState]] = []
        self._turn = 0
        self._taken = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[SequenceState]:
        return (state for _, _, state in self._queue)

    def add(self, states: Sequence[SequenceState]) -> None:
        """Add the jobs of one request."""
        for place, state in enumerate(states):
            self._taken += 1
            insort(self._queue, (self._turn + place, self._taken, state))
            if state.deadline is not None:
                heapq.heappush(self._deadlines, (state.deadline, self._taken, state))

    def first(self) -> list[SequenceState]:
        """List those that are to begin first; what is finished is forgotten on the way."""
        live: list[tuple[int, int, SequenceState]] = []
        seen = 0
        for entry in self._queue:
            if len(live) == LOOKED_AT:
                break
            seen += 1
            if not entry[2].finished:
                live.append(entry)
        self._queue[:seen] = live
        return [state for _, _, state in live]

    def remove(self, begun: Collection[SequenceState]) -> None:
        """Take those out that have begun; they are among the first."""
        head = self._queue[:LOOKED_AT]
        self._turn = max([self._turn, *(turn for turn, _, s in head if s in begun)])
        self._queue[:LOOKED_AT] = [entry for entry in head if entry[2] not in begun]

    def expired(self, now: float) -> Iterator[SequenceState]:
        """Take out of the deadlines those that have passed, of jobs that may have begun."""
        while self._deadlines and self._deadlines[0][0] < now:
            yield heapq.heappop(self._deadlines)[2]
