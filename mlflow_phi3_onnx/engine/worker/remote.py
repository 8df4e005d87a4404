"""The callers' side of an engine in another process, which is started again when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLateError
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_phi3_onnx.engine.base import Health, Load
from mlflow_phi3_onnx.engine.forking import watch_forks
from mlflow_phi3_onnx.engine.worker.jobs import GRACE_S, RemoteJob, Watch, too_late
from mlflow_phi3_onnx.engine.worker.messages import (
    pack_job,
    unpack_delta,
    unpack_error,
)
from mlflow_phi3_onnx.engine.worker.pulse import Pulse
from mlflow_phi3_onnx.errors import (
    CancelledError,
    EngineDeadError,
    GenAIError,
    GenerationTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mlflow_phi3_onnx.engine.base import Deliver, Job
    from mlflow_phi3_onnx.engine.worker.connection import Connection

__all__ = ["Worker", "WorkerEngine"]

_logger = logging.getLogger(__name__)

MOST_DEATHS = 3
"""How often a worker may die in a while before it is not started again by itself."""

WHILE_S = 60.0
"""Seconds of that while."""


class Worker(Protocol):
    """A process that an engine runs in, once it is connected."""

    connection: Connection

    def stop(self) -> None:
        """End it, or leave it where others use it too."""
        ...

    def kill(self, pid: int) -> None:
        """End it, whoever else uses it.

        Args:
            pid: Its process.
        """
        ...

    def ended(self) -> str:
        """Wait until it has ended, after its connection has, and tell how."""
        ...

    def disown(self) -> None:
        """Forget it, in a forked process."""
        ...


class WorkerEngine:
    """Runs jobs in another process.

    A thread reads what the process answers. When the process dies, what was inside fails, and
    another is started at once, unless that has happened too often. A process that is forked from
    this one starts, or connects to, a worker of its own at its first request.

    Args:
        start: Starts a worker, or connects to one. Called in the thread that reads.
        check: Called before each worker but the first: raises if the model is another by now.
        longest: Seconds after which any sequence fails; None leaves that to the requests.

    Attributes:
        kv_tokens: How many tokens the KV memory holds.
        facts: What the worker told of its engine.
        deaths: How many workers have died.

    Raises:
        GenAIError: As the engine in the worker raised it when it was loaded.
        EngineDeadError: If the worker died while it was loaded.
    """

    def __init__(
        self,
        start: Callable[[], Worker],
        check: Callable[[], object],
        *,
        longest: float | None = None,
    ) -> None:
        self._start = start
        self._check = check
        self._longest = longest
        self._closed = False
        self._numbers = count()
        self._died: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._failed_at = 0.0
        self.deaths = 0
        self.facts: dict[str, Any] = {}
        self.begin()
        watch_forks(self)
        try:
            with self._changed:
                self._wait_until_ready(None)
        except BaseException:
            self.close()  # interrupted, it would go on loading
            raise
        self.kv_tokens: int = self.facts["kv_tokens"]

    def begin(self) -> None:
        """Be as an engine that has taken no jobs, and has no worker."""
        self._changed = threading.Condition()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._worker: Worker | None = None
        self._ready = False
        self._pulse: Pulse | None = None
        self._watch: Watch | None = None
        self._failure: GenAIError | None = None
        self._jobs: dict[int, RemoteJob] = {}
        self._requests: dict[int, Future[None]] = {}

    @property
    def loop_name(self) -> str:
        """The loop that runs them, in the worker."""
        return self.facts["loop"]

    @property
    def load(self) -> Load:
        """What this process has to be done; how much of it waits, only the worker knows."""
        return Load(len(self._jobs))

    @property
    def health(self) -> Health:
        """How it is: dead for a while after a worker was not replaced; then the next job tries."""
        failed = self._thread is None and self._failure is not None
        left = self._failed_at + WHILE_S - time.monotonic() if failed else 0.0
        return Health(self.deaths, max(0.0, left))

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> list[RemoteJob]:
        """Take jobs, in order; see :class:`~mlflow_phi3_onnx.engine.base.Engine`."""
        begun = time.monotonic()
        limits = [_least(job.options.timeout, self._longest) for job in jobs]
        taken = [RemoteJob(self, deliver, position) for position in range(len(jobs))]
        request, answer = next(self._numbers), Future[None]()
        try:
            with self._changed:
                connection = self._wait_until_ready(_least(*limits)).connection
                waited = time.monotonic() - begun
                self._requests[request] = answer
                for job, limit in zip(taken, limits, strict=True):
                    job.number = next(self._numbers)
                    job.left = None if limit is None else max(limit - waited, 0) + GRACE_S
                    self._jobs[job.number] = job
                if self._watch is None and _least(*limits) is not None:
                    self._watch = Watch(lambda: tuple(self._jobs.values()))
            for handle, job in zip(taken, jobs, strict=True):
                connection.add("job", request, handle.number, pack_job(_sooner(job, waited)))
            connection.send("submit", request)
            left = [job.left for job in taken if job.left is not None]
            answer.result(max(left, default=None) if len(left) == len(jobs) else None)
        except TooLateError:
            self._abandon(taken)
            raise too_late() from None
        except BaseException:
            # Nobody will hold the handles: refused, lost or interrupted.
            self._abandon(taken)
            raise
        finally:
            self._requests.pop(request, None)
        return taken

    def close(self) -> None:
        """Cancel everything, and end the worker, or leave it where it is shared."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            thread, worker = self._thread, self._worker
            self._changed.notify_all()
        if self._watch is not None:
            self._watch.stop()
        if worker is not None:
            worker.stop()
        self._fail_all(CancelledError("The model was closed."))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def hold(self) -> None:
        """Wait until no worker is being started, and start none."""
        self._starting.acquire()

    def go_on(self) -> None:
        """End what :meth:`hold` began."""
        self._starting.release()

    def disown(self) -> None:
        """Begin anew in a forked process: worker and jobs are its parent's."""
        for job in self._jobs.values():
            job.ended = True
        if self._worker is not None:
            self._worker.disown()
        self.begin()

    def let_go(self, jobs: Iterable[RemoteJob]) -> None:
        """Stop jobs in the worker that nothing is delivered of any more, and forget them."""
        numbers = [n for job in jobs if self._jobs.pop(n := job.number, None) is not None]
        worker = self._worker
        if numbers and worker is not None:
            worker.connection.send("cancel", numbers)

    def _abandon(self, jobs: Sequence[RemoteJob]) -> None:
        for job in jobs:
            job.ended = True
        self.let_go(jobs)

    def forget(self, job: RemoteJob) -> None:
        """Forget a job whose last delta has come."""
        self._jobs.pop(job.number, None)

    def _wait_until_ready(self, most: float | None) -> Worker:
        """Return the worker, started if need be; the lock is held, but while it waits."""
        if not self._closed and self._thread is None:
            self._check_deaths()
            self._failure = None
            self._thread = threading.Thread(target=self._run, name="onnx-genai-worker", daemon=True)
            self._thread.start()
        if not self._changed.wait_for(
            lambda: self._ready or self._closed or self._thread is None, most
        ):
            raise GenerationTimeoutError(
                "The engine's worker process was not ready when the timeout was over. Try again.",
                param="timeout",
            )
        if self._closed:
            raise CancelledError("The model is closed.")
        if self._worker is None or not self._ready:
            raise self._failure or EngineDeadError("The engine's worker process has ended.")
        return self._worker

    def _run(self) -> None:
        """Start workers and read what they answer, until one cannot be used."""
        failure: GenAIError | None = None
        while failure is None:
            try:
                failure = self._run_one()
            except GenAIError as error:
                failure = error
            except BaseException as error:  # noqa: BLE001 - callers wait for this thread
                failure = EngineDeadError(
                    f"The engine's worker process cannot be used ({type(error).__name__})."
                )
                failure.__cause__ = error
        with self._changed:
            self._failure = failure
            if not self._closed:
                self._failed_at = time.monotonic()
            self._thread = None
            self._changed.notify_all()

    def _run_one(self) -> GenAIError | None:
        """Run a worker to its end; return why there is to be no other."""
        if self.facts:
            self._check()
        with self._starting:
            worker = self._start()
            self._worker = worker
        if self._closed:
            worker.stop()
        refusal: GenAIError | None = None
        try:
            for kind, *content in worker.connection:
                if kind == "failed":
                    refusal = unpack_error(content[0])
                    worker.stop()
                else:
                    self._take(kind, content)
        except BaseException as error:  # noqa: BLE001 - what it says cannot be read: end it
            _logger.error("The engine's worker process is ended: %s", type(error).__name__)
            worker.stop()
        if self._pulse is not None:
            self._pulse.stop()
        with self._changed:
            was_ready, self._ready = self._ready, False
            self._worker = None
        how = worker.ended()
        if self._closed:
            return CancelledError("The model is closed.")
        if refusal is not None:
            return refusal
        self.deaths += 1
        self._died.append(time.monotonic())
        _logger.error("The engine's worker process has ended (%s).", how)
        if not was_ready:
            return EngineDeadError(
                f"The engine's worker process ended while it loaded the model ({how})."
            )
        failure = (
            f"The engine's worker process ended with this request inside ({how}). Another is"
            " started: try again."
        )
        self._fail_all(EngineDeadError(failure, retry_after=1))
        try:
            self._check_deaths()
        except EngineDeadError as error:
            return error
        return None

    def _check_deaths(self) -> None:
        """Refuse to start a worker where too many have died lately."""
        if len(self._died) <= MOST_DEATHS:
            return
        left = self._died[0] + WHILE_S - time.monotonic()
        if left > 0:
            raise EngineDeadError(
                f"The engine's worker process has died {len(self._died)} times within"
                f" {WHILE_S:.0f} s. Requests are refused for {left:.0f} s; the log says how it"
                " ended.",
                retry_after=left,
            )

    def _take(self, kind: str, content: list[Any]) -> None:
        if kind == "delta":
            job = self._jobs.get(content[0])
            if job is not None:
                delta = unpack_delta(content[1])
                job.pass_on(delta, last=delta.finish_reason is not None)
        elif kind == "error":
            job = self._jobs.get(content[0])
            if job is not None:
                job.pass_on(unpack_error(content[1]), last=True)
        elif kind in ("taken", "refused"):
            answer = self._requests.pop(content[0], None)
            if answer is not None and kind == "taken":
                answer.set_result(None)
            elif answer is not None:
                answer.set_exception(unpack_error(content[1]))
        elif kind == "ready":
            with self._changed:
                self.facts = content[0]
                self._ready = True
                self._changed.notify_all()
            if self._longest is not None and (worker := self._worker) is not None:
                end = partial(worker.kill, self.facts["pid"])
                self._pulse = Pulse(worker.connection, self._longest, end)
        elif kind == "beat" and self._pulse is not None:
            self._pulse.answered(content[0])
        elif kind == "log":
            name, level, text = content
            logging.getLogger(name).log(level, "%s", text)

    def _fail_all(self, error: GenAIError) -> None:
        with self._changed:
            jobs, answers = [*self._jobs.values()], [*self._requests.values()]
            self._jobs.clear()
            self._requests.clear()
        for answer in answers:
            answer.set_exception(copy(error))
        for job in jobs:
            job.pass_on(copy(error), last=True)


def _sooner(job: Job, seconds: float) -> Job:
    """Take the time that a job has waited here from its timeout."""
    timeout = job.options.timeout
    if timeout is None:
        return job
    return replace(job, options=replace(job.options, timeout=max(timeout - seconds, 1e-3)))


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)
