"""The engine's side of its process: callers connect, and their jobs run together."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.engine.worker.connection import Connection
from mlflow_phi3_onnx.engine.worker.messages import pack_error, unpack_job
from mlflow_phi3_onnx.errors import CancelledError, GenAIError, GenerationError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mlflow_phi3_onnx.engine.base import Job, JobHandle, TokenDelta
    from mlflow_phi3_onnx.engine.inprocess import InProcessEngine

__all__ = ["EngineHost"]

_logger = logging.getLogger(__name__)

MOST_UNREAD = 64 << 20
"""The most bytes that are kept for a caller that does not read, before one message more."""

_COMPILING = 4
"""How many submissions with grammars are looked at together: compiling one may take a second."""


class EngineHost:
    """Lets other processes run jobs with an engine of this one.

    Args:
        emptied: Called when the last caller has gone.
    """

    def __init__(self, emptied: Callable[[], object]) -> None:
        self._emptied = emptied
        self._callers: frozenset[_Caller] = frozenset()
        self._greeting: tuple[Any, ...] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_COMPILING, thread_name_prefix="onnx-genai-compile")
        self.engine: InProcessEngine | None = None

    @property
    def callers(self) -> int:
        """How many are connected."""
        return len(self._callers)

    def join(self, sock: socket.socket) -> None:
        """Serve a caller, in a thread of its own, until it closes its end."""
        caller = _Caller(self, Connection(sock, MOST_UNREAD))
        with self._lock:
            self._callers |= {caller}
            if self._greeting is not None:
                caller.connection.send(*self._greeting)
        threading.Thread(target=caller.run, name="onnx-genai-caller", daemon=True).start()

    def open(self, engine: InProcessEngine, facts: dict[str, Any]) -> None:
        """Take jobs from now on.

        Args:
            engine: What runs them.
            facts: What callers are told of it.
        """
        self.engine = engine
        self._greet("ready", facts)

    def fail(self, error: GenAIError) -> None:
        """Tell every caller, now and later, that there is no engine."""
        self._greet("failed", pack_error(error))

    def tell(self, *message: Any) -> None:
        """Send a message to all callers."""
        for caller in self._callers:
            caller.connection.send(*message)

    def flush(self) -> None:
        """Send what was added to any connection."""
        for caller in self._callers:
            caller.connection.flush()

    def seconds_in_step(self) -> float:
        """Tell for how long the engine has been in a step; 0 where it is in none."""
        began = self.engine and self.engine.step_began
        return 0.0 if began is None else time.monotonic() - began

    def run_aside(self, work: Callable[[], object]) -> None:
        """Run what may take long, beside a caller's other messages."""
        self._pool.submit(work)

    def left(self, caller: _Caller) -> None:
        """Forget a caller that has gone."""
        with self._lock:
            self._callers -= {caller}
            empty = not self._callers
        if empty:
            self._emptied()

    def _greet(self, *greeting: Any) -> None:
        with self._lock:
            self._greeting = greeting
            self.tell(*greeting)


class _Caller:
    """One connected process and its jobs, by the numbers that it gave them."""

    def __init__(self, host: EngineHost, connection: Connection) -> None:
        self._host = host
        self.connection = connection
        self._lock = threading.Lock()
        self._waiting: dict[int, list[tuple[int, Job]]] = {}
        self._handles: dict[int, JobHandle | None] = {}

    def run(self) -> None:
        """Take messages until there are no more, then stop what runs."""
        try:
            for kind, *content in self.connection:
                self._take(kind, content)
                self.connection.flush()
        except Exception as error:  # noqa: BLE001 - whatever it sends, others are served on
            _logger.error("A caller is left: %s", type(error).__name__)
        self.connection.close()
        for number in tuple(self._handles):
            self._cancel(number)
        self._host.left(self)
        self.connection.free()

    def _take(self, kind: str, content: list[Any]) -> None:
        if kind == "job":
            request, number, packed = content
            self._waiting.setdefault(request, []).append((number, unpack_job(packed)))
        elif kind == "submit":
            request = content[0]
            numbered = self._waiting.pop(request, [])
            # From here on they can be cancelled.
            self._handles.update((number, None) for number, _ in numbered)
            submit = partial(self._submit, request, numbered)
            if any(job.options.grammar for _, job in numbered):
                self._host.run_aside(submit)
            else:
                submit()
        elif kind == "cancel":
            for number in content[0]:
                self._cancel(number)
        elif kind == "beat":
            self.connection.add("beat", self._host.seconds_in_step())

    def _submit(self, request: int, numbered: list[tuple[int, Job]]) -> None:
        numbers = [number for number, _ in numbered]
        try:
            if self._host.engine is None:
                raise CancelledError("The model is closed.")
            jobs = [job for _, job in numbered]
            handles = self._host.engine.submit(jobs, partial(self._deliver, numbers))
        except BaseException as error:  # noqa: BLE001 - a panic of native code is no Exception
            for number in numbers:
                self._handles.pop(number, None)
            self.connection.send("refused", request, pack_error(_as_ours(error)))
            return
        for number, handle in zip(numbers, handles, strict=True):
            with self._lock:
                wanted = number in self._handles
                if wanted:
                    self._handles[number] = handle
            if not wanted:
                handle.cancel()  # does nothing to one that is finished
        self.connection.send("taken", request)

    def _deliver(self, numbers: list[int], position: int, arrived: TokenDelta | GenAIError) -> bool:
        """Take what comes of a job. The engine's thread calls it, and flushes after a step."""
        number = numbers[position]
        if isinstance(arrived, GenAIError):
            self._forget(number)
            return self.connection.add("error", number, pack_error(arrived))
        if arrived.finish_reason:
            self._forget(number)
        return self.connection.add("delta", number, arrived)

    def _forget(self, number: int) -> JobHandle | None:
        with self._lock:
            return self._handles.pop(number, None)

    def _cancel(self, number: int) -> None:
        handle = self._forget(number)
        if handle is not None:
            handle.cancel()


def _as_ours(error: BaseException) -> GenAIError:
    if isinstance(error, GenAIError):
        return error
    return GenerationError(f"The engine failed ({type(error).__name__}). Try again.")
