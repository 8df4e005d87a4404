"""An engine inside this process: one thread that steps every batch in turn.

onnxruntime-genai holds the interpreter's lock while it computes, so a second thread would gain
nothing; with one, callers need no lock around the model, and what waits at the same time is
computed together.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, TypeAlias

from mlflow_phi3_onnx.errors import CancelledError, GenAIError, GenerationError, MemoryBudgetError
from mlflow_phi3_onnx.generation.row import Row
from mlflow_phi3_onnx.request import Completion, Delta, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from mlflow_phi3_onnx.engine.base import Job
    from mlflow_phi3_onnx.generation.loop import Batch, Loop
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["InProcessEngine"]

_logger = logging.getLogger(__name__)

_Piece: TypeAlias = "tuple[int, Delta | GenAIError]"


class _Ticket:
    """A job that was taken, and its row.

    Args:
        position: Where the job stands among those it came with.
        pieces: Where pieces go as they are written; None collects them, and the caller is woken
            once, at the end.
    """

    def __init__(self, position: int = 0, pieces: queue.SimpleQueue[_Piece] | None = None) -> None:
        self.row: Row | None = None
        self._position = position
        self._queue = pieces
        self._pieces: list[Delta] = []
        self._over = threading.Event()
        self._error: Exception | None = None

    def put(self, piece: Delta | GenAIError) -> None:
        if isinstance(piece, GenAIError):
            self.fail(piece)
            return
        if self._queue is None:
            self._pieces.append(piece)
        else:
            self._queue.put((self._position, piece))
        if piece.finish_reason is not None:
            self._over.set()

    def fail(self, error: GenAIError) -> None:
        if self._over.is_set():
            return
        self._error = error
        if self.row is not None:
            self.row.cancelled = True
        if self._queue is not None:
            self._queue.put((self._position, error))
        self._over.set()

    def cancel(self) -> None:
        self.fail(CancelledError("Generation was cancelled."))

    def result(self) -> Completion:
        try:
            self._over.wait()
        except BaseException:
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        last = self._pieces[-1]
        assert last.finish_reason is not None
        logprobs: list[TokenLogprob] = [entry for piece in self._pieces for entry in piece.logprobs]
        asked = self.row is not None and self.row.reports_logprobs
        return Completion(
            text="".join(piece.text for piece in self._pieces),
            tokens=last.tokens,
            finish_reason=last.finish_reason,
            logprobs=tuple(logprobs) if asked else None,
        )


class _Stream:
    """Several jobs' pieces, in the order in which they are written."""

    def __init__(self, tickets: Sequence[_Ticket], pieces: queue.SimpleQueue[_Piece]) -> None:
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
        kv_bytes_per_token: Bytes of KV cache that one token takes.
        kv_cache_memory: Bytes of KV cache that all batches may take together.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        tokenizer: PromptTokenizer,
        eos: frozenset[int],
        vocab_size: int,
        kv_bytes_per_token: int,
        kv_cache_memory: int,
    ) -> None:
        self._loop = loop
        self._tokenizer = tokenizer
        self._eos = eos
        self._vocab_size = vocab_size
        self._kv_tokens = max(1, kv_cache_memory // kv_bytes_per_token)
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
        return self._take([self._ticket(job, _Ticket()) for job in jobs])

    def stream(self, jobs: Sequence[Job]) -> _Stream:
        """Take jobs whose answers are wanted in pieces."""
        pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        tickets = [self._ticket(job, _Ticket(i, pieces)) for i, job in enumerate(jobs)]
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
        needed = self._loop.kv_tokens([ticket.row])
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
        scheduler = _Scheduler(self._loop, self._kv_tokens)
        while True:
            while scheduler.idle or not self._inbox.empty():
                tickets = self._inbox.get()
                if tickets is None:
                    scheduler.stop(CancelledError("The model was closed."))
                    return
                scheduler.add(tickets)
            scheduler.step()


class _Scheduler:
    """Decides which rows are computed together, and gives every batch its turn.

    Rows that wait at the same time share a batch, shortest prompts first, so that little is padded.
    A batch never takes in a row later; the next batch starts beside it as soon as memory allows,
    so nobody waits for someone else's whole answer.
    """

    def __init__(self, loop: Loop, kv_tokens: int) -> None:
        self._loop = loop
        self._kv_tokens = kv_tokens
        self._waiting: list[_Ticket] = []
        self._running: list[tuple[Batch, list[_Ticket], int]] = []

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def add(self, tickets: list[_Ticket]) -> None:
        self._waiting += tickets

    def step(self) -> None:
        self._admit()
        for entry in list(self._running):
            batch, tickets, _ = entry
            if not all(row.over for row in batch.rows):
                try:
                    batch.step()
                except Exception as error:  # noqa: BLE001 - whatever it is, its callers must be told
                    _fail(tickets, error)
            if all(row.over for row in batch.rows):
                self._running.remove(entry)

    def stop(self, error: GenAIError) -> None:
        for _, tickets, _ in self._running:
            _fail(tickets, error)
        _fail(self._waiting, error)
        self._running, self._waiting = [], []

    def _admit(self) -> None:
        self._waiting = [t for t in self._waiting if not _row(t).over]
        while self._waiting:
            free = self._kv_tokens - sum(taken for _, _, taken in self._running)
            tickets, taken = self._next_batch(free)
            if not tickets:
                return
            rows = [_row(ticket) for ticket in tickets]
            self._running.append((self._loop.open(rows), tickets, taken))
            chosen = set(map(id, tickets))
            self._waiting = [t for t in self._waiting if id(t) not in chosen]

    def _next_batch(self, free: int) -> tuple[list[_Ticket], int]:
        """Choose rows around the one that has waited longest, as long as they fit."""
        first = self._waiting[0]
        length = len(_row(first).prompt)
        near = sorted(self._waiting[1:], key=lambda t: abs(len(_row(t).prompt) - length))
        tickets: list[_Ticket] = []
        taken = 0
        for ticket in [first, *near]:
            if len(tickets) == self._loop.max_batch_size:
                break
            needed = self._loop.kv_tokens([_row(t) for t in [*tickets, ticket]])
            if needed > free:
                break
            tickets.append(ticket)
            taken = needed
        return tickets, taken


def _row(ticket: _Ticket) -> Row:
    assert ticket.row is not None
    return ticket.row


def _fail(tickets: list[_Ticket], error: Exception) -> None:
    if isinstance(error, GenAIError):
        failure = error
    else:
        _logger.error("Generation failed: %s", type(error).__name__)
        failure = GenerationError(f"Generation failed ({type(error).__name__}).")
        failure.__cause__ = error
    for ticket in tickets:
        ticket.fail(failure)
