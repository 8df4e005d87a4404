"""The callers' side of single jobs in a worker, and of those that it says nothing of in time.

A worker ends a job itself when its timeout is over. One that is stopped or hangs does not, and its
callers must not wait for it: they get the same error some time later. The worker stays, as others
may use it; ``pulse`` tells whether it is to be ended.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

from mlflow_phi3_onnx.errors import CancelledError, GenerationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_phi3_onnx.engine.base import Deliver, TokenDelta
    from mlflow_phi3_onnx.errors import GenAIError

__all__ = ["GRACE_S", "RemoteJob", "Watch", "too_late"]

_logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""Seconds after a job's timeout in which the worker may say so itself, out of a long step."""

_TICK_S = 0.25
"""Seconds between two looks at the jobs."""


class _Owner(Protocol):
    def forget(self, job: RemoteJob) -> None:
        """Forget a job whose last delta has come."""
        ...

    def let_go(self, jobs: Iterable[RemoteJob]) -> None:
        """Stop jobs in the worker, and forget them."""
        ...


class RemoteJob:
    """A job in another process, and its handle.

    Args:
        owner: The engine that has it.
        deliver: Takes what comes of it.
        position: Its place in its request.

    Attributes:
        number: What the worker knows it by.
        ended: Whether nothing more is delivered.
        left: Seconds until it is given up, whatever the worker says; None for never.
    """

    number = -1
    left: float | None = None

    def __init__(self, owner: _Owner, deliver: Deliver, position: int) -> None:
        self._owner = owner
        self._deliver = deliver
        self._position = position
        self._delivering = threading.Lock()
        self.ended = False

    def pass_on(self, arrived: TokenDelta | GenAIError, *, last: bool) -> None:
        """Deliver, unless the last delta has been."""
        with self._delivering:
            if self.ended:
                return
            self.ended = last
            try:
                wanted = self._deliver(self._position, arrived)
            except Exception as error:  # noqa: BLE001 - other callers' deltas are read on
                _logger.error("A delta could not be delivered: %s", type(error).__name__)
                wanted = False
            self.ended = last or not wanted
        if last:
            self._owner.forget(self)
        elif not wanted:
            self._owner.let_go([self])

    def cancel(self) -> None:
        """Stop the job: at most one more step is computed. Does nothing once it is finished."""
        self.end(CancelledError("Generation was cancelled."))

    def end(self, error: GenAIError) -> None:
        """Stop the job with an error. Does nothing once it is finished."""
        if self.ended:
            return
        with self._delivering:
            if self.ended:
                return
            self.ended = True
            try:
                self._deliver(self._position, error)
            finally:
                self._owner.let_go([self])


class Watch:
    """Gives jobs up when their time is over, in a thread of its own.

    What this process itself slept through is not counted.

    Args:
        jobs: Lists those that are in the worker.
    """

    def __init__(self, jobs: Callable[[], Iterable[RemoteJob]]) -> None:
        self._jobs = jobs
        self._over = threading.Event()
        threading.Thread(target=self._run, name="onnx-genai-watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(_TICK_S):
            for job in self._jobs():
                if job.left is None:
                    continue
                job.left -= _TICK_S
                if job.left <= 0:
                    try:
                        job.end(too_late())
                    except Exception as error:  # noqa: BLE001 - other jobs are watched on
                        _logger.error("A delta could not be delivered: %s", type(error).__name__)


def too_late() -> GenerationTimeoutError:
    """Make the error of a job that the worker says nothing of."""
    return GenerationTimeoutError(
        "The completion was not finished when its timeout was over, and the engine's worker process"
        " does not answer: it is in a long step, hangs or is stopped. Raise timeout, or try again.",
        param="timeout",
    )
