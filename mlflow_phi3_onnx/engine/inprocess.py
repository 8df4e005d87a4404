"""An engine inside this process: one thread that steps every batch in turn.

onnxruntime-genai holds the interpreter's lock while it computes, so a second thread would gain
nothing; with one, callers need no lock around the model, and what waits at the same time is
computed together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from mlflow_phi3_onnx.errors import CancelledError, GenAIError, MemoryBudgetError
from mlflow_phi3_onnx.generation.loop import failing
from mlflow_phi3_onnx.generation.row import Row
from mlflow_phi3_onnx.request import Completion, Delta, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence

    from mlflow_phi3_onnx.engine.base import Job
    from mlflow_phi3_onnx.generation.loop import Loop
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["InProcessEngine"]

_Piece: TypeAlias = "tuple[int, Delta | GenAIError]"


class _Pieces:
    """A queue of pieces, to be read in a thread or in an event loop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None

    def put(self, piece: _Piece) -> None:
        self._queue.put(piece)
        if self._wake is not None:
            self._wake()

    def get(self) -> _Piece:
        return self._queue.get()

    async def aget(self) -> _Piece:
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


class _Ticket:
    """A job that was taken, and its row.

    Args:
        loop: The loop that computes it.
        position: Where the job stands among those it came with.
        pieces: Where pieces go as they are written; None collects them, and the caller is woken
            once, at the end.
    """

    def __init__(self, loop: Loop, position: int = 0, pieces: _Pieces | None = None) -> None:
        self.row: Row | None = None
        self._loop = loop
        self._position = position
        self._queue = pieces
        self._pieces: list[Delta] = []
        self._answer: Future[Completion] = Future()
        self._answer.set_running_or_notify_cancel()  # only cancel() stops it

    def put(self, piece: Delta | GenAIError) -> None:
        if isinstance(piece, GenAIError):
            self.fail(piece)
            return
        self._pieces.append(piece)
        if self._queue is not None:
            self._queue.put((self._position, piece))
        if piece.finish_reason is not None and not self._answer.done():
            self._answer.set_result(self._whole())

    def fail(self, error: GenAIError) -> None:
        if self._answer.done():
            return
        if self.row is not None:
            self.row.cancelled = True
        if self._queue is not None:
            self._queue.put((self._position, error))
        self._answer.set_exception(error)

    def cancel(self) -> None:
        if not self._answer.done():
            self.fail(CancelledError("Generation was cancelled."))
            self._loop.interrupt(_row(self))

    def result(self) -> Completion:
        try:
            return self._answer.result()
        finally:
            self.cancel()

    async def aresult(self) -> Completion:
        try:
            return await asyncio.wrap_future(self._answer)
        finally:
            self.cancel()

    def _whole(self) -> Completion:
        last = self._pieces[-1]
        assert last.finish_reason is not None
        logprobs: list[TokenLogprob] = [entry for piece in self._pieces for entry in piece.logprobs]
        asked = self.row is not None and self.row.reports_logprobs
        return Completion(
            text="".join(piece.text for piece in self._pieces),
            tokens=last.tokens,
            finish_reason=last.finish_reason,
            logprobs=tuple(logprobs) if asked else None,
            prompt_logprobs=self._pieces[0].prompt_logprobs or None,
            cached_tokens=last.cached_tokens,
            drafted_tokens=last.drafted_tokens,
            accepted_tokens=last.accepted_tokens,
        )


class _Stream:
    """Several jobs' pieces, in the order in which they are written."""

    def __init__(self, tickets: Sequence[_Ticket], pieces: _Pieces) -> None:
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
        for ticket in self._tickets:
            ticket.cancel()


class InProcessEngine:
    """Runs jobs with a loop in this process.

    Args:
        loop: The loop that computes.
        tokenizer: The model's tokenizer.
        eos: The ids that end an answer.
        vocab_size: The width of the logits.
        kv_tokens: How many tokens the KV memory holds.
        kv_bytes_per_token: Bytes of KV cache that one token takes.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        tokenizer: PromptTokenizer,
        eos: frozenset[int],
        vocab_size: int,
        kv_tokens: int,
        kv_bytes_per_token: int,
    ) -> None:
        self._loop = loop
        self._tokenizer = tokenizer
        self._eos = eos
        self._vocab_size = vocab_size
        self._kv_tokens = kv_tokens
        self._kv_bytes_per_token = kv_bytes_per_token
        self._inbox: queue.SimpleQueue[list[_Ticket] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False

    @property
    def kv_tokens(self) -> int:
        """How many tokens the KV memory holds."""
        return self._kv_tokens

    def submit(self, jobs: Sequence[Job]) -> list[_Ticket]:
        """Take jobs, in order, to be waited for."""
        return self._take([self._ticket(job, _Ticket(self._loop)) for job in jobs])

    def stream(self, jobs: Sequence[Job]) -> _Stream:
        """Take jobs whose answers are wanted in pieces."""
        pieces = _Pieces()
        tickets = [self._ticket(job, _Ticket(self._loop, i, pieces)) for i, job in enumerate(jobs)]
        return _Stream(self._take(tickets), pieces)

    def close(self) -> None:
        """Cancel everything, stop the thread and free the model."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread if self._pid == os.getpid() else None
            self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._loop.close()

    def _take(self, tickets: list[_Ticket]) -> list[_Ticket]:
        with self._lock:
            if self._closed:
                raise CancelledError("The model is closed.")
            self._start()
            self._inbox.put(tickets)
        return tickets

    def _ticket(self, job: Job, ticket: _Ticket) -> _Ticket:
        ticket.row = Row(
            job.prompt,
            job.max_tokens,
            job.options,
            tokenizer=self._tokenizer,
            eos=self._eos,
            vocab_size=self._vocab_size,
            sink=ticket.put,
            index=job.index,
        )
        needed = self._loop.needs(ticket.row)
        if needed > self._kv_tokens:
            per_token = self._kv_bytes_per_token
            raise MemoryBudgetError(
                f"The KV cache of {len(job.prompt):,} prompt tokens and {job.max_tokens:,} answer"
                f" tokens takes {needed * per_token:,} bytes; kv_cache_memory allows"
                f" {self._kv_tokens * per_token:,}. Lower max_tokens, shorten the prompt or raise"
                " kv_cache_memory.",
                param="max_tokens",
            )
        return ticket

    def _start(self) -> None:
        """Start the thread, again where this process was forked from one that had it."""
        if self._thread is not None and self._pid == os.getpid():
            return
        if self._thread is not None:
            self._inbox = queue.SimpleQueue()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="onnx-genai-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        waiting: list[_Ticket] = []
        running: list[_Ticket] = []
        while True:
            while not self._inbox.empty() or not (waiting or self._loop.busy):
                tickets = self._inbox.get()
                if tickets is None:
                    for ticket in waiting + running:
                        ticket.fail(CancelledError("The model was closed."))
                    return
                waiting += tickets
            waiting = [ticket for ticket in waiting if not _row(ticket).over]
            if waiting:
                rows = [_row(ticket) for ticket in waiting]
                begun: Collection[Row] = ()
                with failing(rows):
                    begun = self._loop.admit(rows)
                running = [ticket for ticket in running if not _row(ticket).over]
                running += [ticket for ticket in waiting if _row(ticket) in begun]
                waiting = [ticket for ticket in waiting if _row(ticket) not in begun]
            self._loop.step()


def _row(ticket: _Ticket) -> Row:
    assert ticket.row is not None
    return ticket.row
