"""An engine inside this process: one thread that steps every batch in turn.

onnxruntime-genai holds the interpreter's lock while it computes, so a second thread would gain
nothing; with one, callers need no lock around the model, and what waits at the same time is
computed together.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.engine.base import Health, Load
from mlflow_phi3_onnx.engine.forking import watch_forks
from mlflow_phi3_onnx.engine.loops.base import Failing
from mlflow_phi3_onnx.engine.sequence.state import SequenceState
from mlflow_phi3_onnx.engine.waiting import WaitingJobs
from mlflow_phi3_onnx.errors import (
    CancelledError,
    GenerationError,
    GenerationTimeoutError,
    MemoryBudgetError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mlflow_phi3_onnx.engine.base import Deliver, Job, TokenDelta
    from mlflow_phi3_onnx.engine.loops.base import Loop
    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler

__all__ = ["InProcessEngine"]

_logger = logging.getLogger(__name__)


class InProcessEngine:
    """Runs jobs with a loop in this process.

    A process that is forked from this one has an engine of its own, which shares the weights; what
    was running stays with this one.

    Args:
        loop: The loop that computes.
        grammars: Gives the compiler of grammars, which is made when it is first asked for.
        eos: The end-of-sequence ids.
        vocab_size: The width of the logits.
        kv_tokens: How many tokens the KV memory holds.
        kv_bytes_per_token: Bytes of KV cache that one token takes.
        longest: Seconds after which any sequence fails; None leaves that to the requests.

    Attributes:
        kv_tokens: How many tokens the KV memory holds.
        loop: The loop.
        step_began: When the step that is being computed began, by the system's monotonic clock;
            None between two.
        after_step: Called in the engine's thread after each step, and after each failure of all:
            whoever passes deltas on can do so for a whole step at once.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        grammars: Callable[[], GrammarCompiler],
        eos: frozenset[int],
        vocab_size: int,
        kv_tokens: int,
        kv_bytes_per_token: int,
        longest: float | None = None,
    ) -> None:
        self._loop = self.loop = loop
        self._grammars = grammars
        self._eos = eos
        self._vocab_size = vocab_size
        self.kv_tokens = kv_tokens
        self._kv_bytes_per_token = kv_bytes_per_token
        self._longest = longest
        self.after_step: Callable[[], object] = lambda: None
        self._closed = False
        self._forked = False
        self.begin()
        watch_forks(self)

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> list[SequenceState]:
        """Take jobs, in order; see :class:`~mlflow_phi3_onnx.engine.base.Engine`."""
        states = [self._state(job, partial(deliver, at)) for at, job in enumerate(jobs)]
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
            self._inbox.put(states)
        return states

    @property
    def loop_name(self) -> str:
        """The loop that runs them."""
        return self._loop.name

    @property
    def load(self) -> Load:
        """What there is to do; may be asked for in any thread."""
        running = sum(not state.finished for state in self._running)
        return Load(running, len(self._waiting))

    @property
    def health(self) -> Health:
        """Always well: it dies with its process."""
        return Health()

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
        if not self._forked:
            self._loop.close()

    def begin(self) -> None:
        """Be as an engine that has taken no jobs."""
        self._waiting = WaitingJobs()
        self._running: list[SequenceState] = []
        self._inbox: queue.SimpleQueue[Sequence[SequenceState] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self.step_began: float | None = None
        self._thread: threading.Thread | None = None

    def _state(self, job: Job, deliver: Callable[[TokenDelta | GenAIError], bool]) -> SequenceState:
        options = job.options
        if options.prompt_logprobs and not self._loop.scores:
            raise UnsupportedParameterError(
                "The model's graph gives no logits of a prompt's tokens, so their log-probabilities"
                " cannot be reported."
            )
        if options.draft_tokens and not self._loop.drafts:
            raise UnsupportedParameterError(
                "prompt_lookup_num_tokens and prediction are not supported with this model: its"
                " cache cannot be taken back where a draft token is wrong. Leave them out.",
                param="prompt_lookup_num_tokens",
            )
        timeouts = [t for t in (options.timeout, self._longest) if t is not None]
        state = SequenceState(
            job,
            eos=options.ends(self._eos),
            vocab_size=self._vocab_size,
            matcher=options.grammar and self._grammars().matcher(options.grammar),
            timeout=min(timeouts, default=None),
            deliver=deliver,
            interrupt=self._loop.interrupt,
        )
        if state.most_tokens > self.kv_tokens:
            per_token = self._kv_bytes_per_token
            raise MemoryBudgetError(
                f"The KV cache of {len(job.prompt):,} prompt tokens and {job.max_tokens:,}"
                f" completion tokens takes {state.most_tokens * per_token:,} bytes;"
                f" kv_cache_memory allows {self.kv_tokens * per_token:,}. Lower max_tokens, shorten"
                " the prompt or raise kv_cache_memory.",
                param="max_tokens",
            )
        return state

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - a panic of native code is no Exception
            _logger.error("The engine's thread has ended: %s", type(error).__name__)
            failure = GenerationError(f"The engine failed ({type(error).__name__}). Try again.")
            failure.__cause__ = error
            # Whatever was taken fails; the next job starts a thread anew.
            with self._lock:
                self._thread = self.step_began = None
                while not self._inbox.empty():
                    self._waiting.add(self._inbox.get() or ())
                self._fail_all(failure)

    def _serve(self) -> None:
        while True:
            while not self._inbox.empty() or not (self._waiting or self._loop.busy):
                states = self._inbox.get()
                if states is None:
                    self._fail_all(CancelledError("The model was closed."))
                    return
                self._waiting.add(states)
            # A fork waits for the end of a step, so that it finds nothing half done.
            with self._stepping:
                self.step_began = time.monotonic()
                self._give_up_late_ones()
                self._admit()
                self._loop.step()
                self.step_began = None
            self.after_step()

    def _fail_all(self, error: GenAIError) -> None:
        for state in (*self._waiting, *self._running):
            state.fail(error)
        self._waiting = WaitingJobs()
        self._running = []
        self.after_step()

    def _give_up_late_ones(self) -> None:
        for state in self._waiting.expired(time.monotonic()):
            if not state.finished:
                state.fail(
                    GenerationTimeoutError(
                        "The completion was not finished when its timeout was over. Raise timeout,"
                        " or lower max_tokens.",
                        param="timeout",
                    )
                )

    def _admit(self) -> None:
        self._running = [state for state in self._running if not state.finished]
        waiting = self._waiting.first()
        if not waiting:
            return
        begun: Collection[SequenceState] = ()
        with Failing(waiting):
            begun = self._loop.admit(waiting)
        for state in begun:
            state.begin()
        self._running += [state for state in waiting if state in begun]
        self._waiting.remove(begun)

    def disown(self) -> None:
        """Begin anew in a forked process: what was taken is its parent's.

        The model is never freed here. ONNX Runtime would wait for the end of its threads, which
        have stayed with the parent, and sometimes for ever.
        """
        for state in (*self._waiting, *self._running):
            state.finished = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loop))
        self._forked = True
        self.begin()

    def hold(self) -> None:
        """Wait for the end of a step, and keep the next one from beginning."""
        self._lock.acquire()
        self._stepping.acquire()

    def go_on(self) -> None:
        """End what :meth:`hold` began."""
        self._stepping.release()
        self._lock.release()
