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
import time
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.engine.handles import Answer, JobTicket, Pieces, PiecesStream
from mlflow_phi3_onnx.engine.loops.base import Failing
from mlflow_phi3_onnx.engine.sequence.state import Row
from mlflow_phi3_onnx.engine.waiting import WaitingJobs
from mlflow_phi3_onnx.errors import (
    CancelledError,
    GenerationError,
    GenerationTimeoutError,
    MemoryBudgetError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mlflow_phi3_onnx.engine.base import Job
    from mlflow_phi3_onnx.engine.loops.base import Loop
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["InProcessEngine"]

_logger = logging.getLogger(__name__)


class InProcessEngine:
    """Runs jobs with a loop in this process.

    A process that is forked from this one has an engine of its own, which shares the weights; what
    was running stays with this one.

    Args:
        loop: The loop that computes.
        tokenizer: The model's tokenizer.
        eos: The ids that end an answer.
        vocab_size: The width of the logits.
        kv_tokens: How many tokens the KV memory holds.
        kv_bytes_per_token: Bytes of KV cache that one token takes.
        longest: Seconds after which any answer is given up; None leaves that to the requests.
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
        longest: float | None = None,
    ) -> None:
        self._loop = loop
        self._tokenizer = tokenizer
        self._eos = eos
        self._vocab_size = vocab_size
        self._kv_tokens = kv_tokens
        self._kv_bytes_per_token = kv_bytes_per_token
        self._longest = longest
        self._waiting = WaitingJobs()
        self._running: list[JobTicket] = []
        self._closed = False
        self._begin()
        _engines.add(self)

    @property
    def kv_tokens(self) -> int:
        """How many tokens the KV memory holds."""
        return self._kv_tokens

    def submit(self, jobs: Sequence[Job]) -> list[Answer]:
        """Take jobs to be waited for."""
        tickets: list[Answer] = []
        for job in jobs:
            ticket = Answer(self._loop, reports_logprobs=job.options.top_logprobs is not None)
            ticket.row = self._row(job, ticket, in_pieces=False)
            tickets.append(ticket)
        self._take(tickets)
        return tickets

    def stream(self, jobs: Sequence[Job]) -> PiecesStream:
        """Take jobs whose answers are wanted in pieces."""
        pieces = Pieces()
        tickets: list[JobTicket] = []
        for position, job in enumerate(jobs):
            ticket = JobTicket(self._loop, partial(pieces.put, position))
            ticket.row = self._row(job, ticket, in_pieces=True)
            tickets.append(ticket)
        self._take(tickets)
        return PiecesStream(tickets, pieces)

    def close(self) -> None:
        """Cancel everything, stop the thread and free the model."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._loop.close()

    def _begin(self) -> None:
        """Be as an engine that has taken no jobs; what it had taken is no longer its own."""
        for ticket in (*self._waiting, *self._running):
            ticket.row.cancelled = True
        self._waiting = WaitingJobs()
        self._running = []
        self._inbox: queue.SimpleQueue[Sequence[JobTicket] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._thread: threading.Thread | None = None

    def _take(self, tickets: Sequence[JobTicket]) -> None:
        with self._lock:
            if self._closed:
                raise CancelledError("The model is closed.")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="onnx-genai-engine", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise GenerationError(
                        "The engine's thread cannot be started: the system has no thread or memory"
                        " to spare. Try again."
                    ) from error
                self._thread = thread
            self._inbox.put(tickets)

    def _row(self, job: Job, ticket: JobTicket, *, in_pieces: bool) -> Row:
        options = job.options
        if options.prompt_logprobs and not self._loop.scores:
            raise UnsupportedParameterError(
                "The model's graph gives no logits of a prompt's tokens, so their log-probabilities"
                " cannot be reported."
            )
        if options.draft_tokens and not self._loop.drafts:
            raise UnsupportedParameterError(
                "prompt_lookup_num_tokens and prediction are not supported with this model: its"
                " cache cannot be taken back where a guess is wrong. Leave them out.",
                param="prompt_lookup_num_tokens",
            )
        if self._longest is not None:
            options = replace(options, timeout=min(options.timeout or self._longest, self._longest))
        row = Row(
            job.prompt,
            job.max_tokens,
            options,
            tokenizer=self._tokenizer,
            eos=self._eos,
            vocab_size=self._vocab_size,
            sink=ticket.put,
            index=job.index,
            in_pieces=in_pieces,
        )
        needed = self._loop.needs(row)
        if needed > self._kv_tokens:
            per_token = self._kv_bytes_per_token
            raise MemoryBudgetError(
                f"The KV cache of {len(job.prompt):,} prompt tokens and {job.max_tokens:,} answer"
                f" tokens takes {needed * per_token:,} bytes; kv_cache_memory allows"
                f" {self._kv_tokens * per_token:,}. Lower max_tokens, shorten the prompt or raise"
                " kv_cache_memory.",
                param="max_tokens",
            )
        return row

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - a panic of native code is no Exception
            self._lose_thread(error)

    def _lose_thread(self, error: BaseException) -> None:
        """Fail whatever was taken; the next job starts a thread anew."""
        _logger.error("The engine's thread has ended: %s", type(error).__name__)
        with self._lock:
            self._thread = None
            while not self._inbox.empty():
                self._waiting.add(self._inbox.get() or ())
            failure = GenerationError(f"The engine failed ({type(error).__name__}). Try again.")
            failure.__cause__ = error
            for ticket in (*self._waiting, *self._running):
                ticket.row.fail(failure)
            self._waiting = WaitingJobs()
            self._running = []

    def _serve(self) -> None:
        while True:
            while not self._inbox.empty() or not (self._waiting or self._loop.busy):
                tickets = self._inbox.get()
                if tickets is None:
                    for ticket in (*self._waiting, *self._running):
                        ticket.row.fail(CancelledError("The model was closed."))
                    return
                self._waiting.add(tickets)
            # A fork waits for the end of a step, so that it finds nothing half done.
            with self._stepping:
                self._give_up_late_ones()
                self._admit()
                self._loop.step()

    def _give_up_late_ones(self) -> None:
        for ticket in self._waiting.expired(time.monotonic()):
            if not ticket.row.over:
                ticket.row.fail(
                    GenerationTimeoutError(
                        "The answer was not whole when its timeout was over. Raise timeout, or"
                        " lower max_tokens.",
                        param="timeout",
                    )
                )

    def _admit(self) -> None:
        self._running = [ticket for ticket in self._running if not ticket.row.over]
        waiting = self._waiting.first()
        if not waiting:
            return
        rows = [ticket.row for ticket in waiting]
        begun: Collection[Row] = ()
        with Failing(rows):
            begun = self._loop.admit(rows)
        self._running += [ticket for ticket in waiting if ticket.row in begun]
        self._waiting.remove(begun)

    def before_fork(self) -> None:
        """Wait for the end of a step, and keep the next one from beginning."""
        self._lock.acquire()
        self._stepping.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._stepping.release()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew, with a thread of its own at the first job."""
        self._begin()


_engines: weakref.WeakSet[InProcessEngine] = weakref.WeakSet()
_forking: list[InProcessEngine] = []


def _before_fork() -> None:
    _forking[:] = sorted(_engines, key=id)
    for engine in _forking:
        engine.before_fork()


def _after_fork_in_parent() -> None:
    for engine in reversed(_forking):
        engine.after_fork_in_parent()
    _forking.clear()


def _after_fork_in_child() -> None:
    for engine in _forking:
        engine.after_fork_in_child()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
