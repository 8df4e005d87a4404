"""An engine's host and its callers in one process, with nothing but a socket between them."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.engine.worker.connection import Connection
from mlflow_phi3_onnx.engine.worker.host import EngineHost
from mlflow_phi3_onnx.engine.worker.remote import WorkerEngine
from mlflow_phi3_onnx.model.running import TextEngine
from tests.support.engines import EngineUnderTest

if TYPE_CHECKING:
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
    from tests.support.engines import ScriptedLoop

__all__ = ["Hosted"]

PID = -1
"""Of a worker that is no process."""


class ThreadWorker:
    """A worker that is no process of its own."""

    def __init__(self, host: EngineHost) -> None:
        ours, theirs = socket.socketpair()
        host.join(theirs)
        self.connection = Connection(ours)

    def stop(self) -> None:
        self.connection.close()

    def kill(self, pid: int) -> None:
        assert pid == PID
        self.stop()

    def ended(self) -> str:
        self.connection.free()
        return "on purpose"

    def disown(self) -> None:
        self.connection.disown()


class Hosted:
    """A scripted loop behind a host, and any number of engines that run jobs with it.

    Args:
        loop: The loop.
        tokenizer: The tokenizer of the texts.
    """

    def __init__(self, loop: ScriptedLoop, tokenizer: PromptTokenizer) -> None:
        self.loop = loop
        self.emptied = threading.Event()
        self.host = EngineHost(self.emptied.set)
        self.inside = EngineUnderTest(loop, tokenizer).engine
        self.inside.after_step = self.host.flush
        self.host.open(self.inside, {"kv_tokens": self.inside.kv_tokens, "pid": PID})
        self.workers: list[ThreadWorker] = []
        self._tokenizer = tokenizer

    def caller(self, longest: float | None = None) -> WorkerEngine:
        """Connect as another process would."""

        def start() -> ThreadWorker:
            self.workers.append(ThreadWorker(self.host))
            return self.workers[-1]

        return WorkerEngine(start, lambda: None, longest=longest)

    def texts(self, engine: WorkerEngine) -> TextEngine:
        """Make text of what an engine answers."""
        return TextEngine(engine, self._tokenizer, frozenset({0}))

    def close(self) -> None:
        """End the engine, whoever is connected."""
        self.loop.gate.set()
        self.inside.close()
