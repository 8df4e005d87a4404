"""What callers hold of the jobs that an engine has taken."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from mlflow_phi3_onnx.core.request import Completion, Delta
from mlflow_phi3_onnx.errors import CancelledError, GenAIError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from mlflow_phi3_onnx.engine.loops.base import Loop
    from mlflow_phi3_onnx.engine.sequence.state import Row

__all__ = ["Answer", "JobTicket", "Pieces", "PiecesStream"]

_Piece: TypeAlias = "tuple[int, Delta | GenAIError]"


class JobTicket:
    """A job that was taken, and its row.

    Args:
        loop: The loop that computes it.
        deliver: Called with each piece of the answer; a whole one or an error is the last.
    """

    row: Row

    def __init__(self, loop: Loop, deliver: Callable[[Delta | GenAIError], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._lock = threading.Lock()
        self._over = False

    def put(self, piece: Delta | GenAIError) -> None:
        """Pass a piece on, unless the last one has been. Any thread may call it."""
        with self._lock:
            if self._over:
                return
            self._over = isinstance(piece, GenAIError) or piece.finish_reason is not None
            self._deliver(piece)

    def cancel(self) -> None:
        """Stop the job: at most one more step is computed. Does nothing when it is over."""
        if not self._over:
            self.row.fail(CancelledError("Generation was cancelled."))
            self._loop.interrupt(self.row)


class Answer(JobTicket):
    """A job whose answer is wanted as a whole.

    Args:
        loop: The loop that computes it.
        reports_logprobs: Whether the request asks for log-probabilities.
    """

    def __init__(self, loop: Loop, *, reports_logprobs: bool) -> None:
        super().__init__(loop, self._settle)
        self._reports_logprobs = reports_logprobs
        self._future: Future[Completion] = Future()
        self._future.set_running_or_notify_cancel()  # only cancel() stops it

    def result(self) -> Completion:
        """Wait for the answer. Stops the job where the waiting is interrupted."""
        try:
            return self._future.result()
        finally:
            self.cancel()

    async def aresult(self) -> Completion:
        """Wait for the answer, without blocking the event loop."""
        try:
            return await asyncio.wrap_future(self._future)
        finally:
            self.cancel()

    def _settle(self, piece: Delta | GenAIError) -> None:
        if isinstance(piece, GenAIError):
            self._future.set_exception(piece)
            return
        assert piece.finish_reason is not None, "the answer comes as a whole"
        self._future.set_result(
            Completion(
                text=piece.text,
                tokens=piece.tokens,
                finish_reason=piece.finish_reason,
                logprobs=piece.logprobs if self._reports_logprobs else None,
                prompt_logprobs=piece.prompt_logprobs or None,
                cached_tokens=piece.cached_tokens,
                drafted_tokens=piece.drafted_tokens,
                accepted_tokens=piece.accepted_tokens,
                token_ids=piece.token_ids,
            )
        )


class Pieces:
    """A queue of pieces, to be read in a thread or in an event loop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None

    def put(self, position: int, piece: Delta | GenAIError) -> None:
        """Add a piece of the job at a position."""
        self._queue.put((position, piece))
        if self._wake is not None:
            self._wake()

    def get(self) -> _Piece:
        """Wait for the next piece."""
        return self._queue.get()

    async def aget(self) -> _Piece:
        """Wait for the next piece, without blocking the event loop."""
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        # An event loop that is closed wants no piece any more.
        self._wake = lambda: loop.is_closed() or loop.call_soon_threadsafe(arrived.set)
        while True:
            # Looked for after the wake-up call is set, so that no piece comes unseen in between.
            with contextlib.suppress(queue.Empty):
                return self._queue.get_nowait()
            await arrived.wait()
            arrived.clear()


class PiecesStream:
    """Several jobs' pieces, in the order in which they are written."""

    def __init__(self, tickets: Sequence[JobTicket], pieces: Pieces) -> None:
        self._tickets = tickets
        self._pieces = pieces

    def __iter__(self) -> Generator[tuple[int, Delta]]:
        running = len(self._tickets)
        try:
            while running:
                position, piece = self._pieces.get()
                if isinstance(piece, GenAIError):
                    raise piece
                yield position, piece
                running -= piece.finish_reason is not None
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[tuple[int, Delta]]:
        running = len(self._tickets)
        try:
            while running:
                position, piece = await self._pieces.aget()
                if isinstance(piece, GenAIError):
                    raise piece
                yield position, piece
                running -= piece.finish_reason is not None
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop the jobs: at most one more step is computed."""
        for ticket in self._tickets:
            ticket.cancel()
