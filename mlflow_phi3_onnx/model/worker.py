"""The main module of a worker process: it loads a model and runs jobs for other processes."""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.artifact.lora.adapters import fitted
from mlflow_phi3_onnx.engine.options import EngineOptions, ServingPolicy
from mlflow_phi3_onnx.engine.worker.host import EngineHost
from mlflow_phi3_onnx.engine.worker.process import is_same_user, lent_socket, locked, remove_own
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.model.start import start_engine
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_FIRST_CALLER_S = 60.0
"""Seconds that a shared worker waits for the process that started it."""


def main(given: Mapping[str, Any]) -> None:
    """Run an engine until nobody is connected, which ends the process.

    Args:
        given: The recipe of the engine, and what the process that started this one lends.
    """
    sock = lent_socket(given["socket"])
    if given["listen"] is None:
        _die_with(given["parent"])
        # There is nothing to save, and ONNX Runtime may be in the middle of a step.
        host = EngineHost(emptied=lambda: os._exit(0))
        host.join(sock)
    else:
        os.chdir("/")
        host = _Lobby(sock, Path(given["listen"])).host
    _pass_log_on(host)
    _load(host, given)
    threading.Event().wait()


class _Lobby:
    """Lets callers in, and ends the process when all have gone.

    Callers connect while they hold the folder's lock. So does this process look for callers and end
    if there is none: nobody connects to one that is about to end.
    """

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._path = path
        self._own = path.stat().st_ino
        self._woken, wake = socket.socketpair()
        self.host = EngineHost(emptied=lambda: wake.send(b"."))
        threading.Thread(target=self._run, name="onnx-genai-lobby", daemon=True).start()

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            os._exit(1)  # without it, nobody would end this process

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for sock in (self._listener, self._woken):
            selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(None if self.host.callers else _FIRST_CALLER_S):
                if key.fileobj is self._woken:
                    self._woken.recv(1)
                else:
                    self._let_in()
            if not self.host.callers:
                self._end_if_alone()

    def _let_in(self) -> bool:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return False
        if not is_same_user(sock):
            sock.close()
            return False
        sock.setblocking(True)
        self.host.join(sock)
        return True

    def _end_if_alone(self) -> None:
        # Where the folder has been removed, as at the end of a session, nobody can connect.
        with suppress(OSError), locked(self._path.parent / "lock"):
            if self._let_in():
                return
            remove_own(self._path, self._own)
            os._exit(0)
        if not self._let_in():
            os._exit(0)


class _PassedOn(logging.Handler):
    """Lets the log of this process be written by those that it works for."""

    def __init__(self, host: EngineHost) -> None:
        super().__init__()
        self._host = host

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, as text."""
        self._host.tell("log", record.name, record.levelno, record.getMessage())


def _pass_log_on(host: EngineHost) -> None:
    logger = logging.getLogger(__name__.partition(".")[0])
    logger.addHandler(_PassedOn(host))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _load(host: EngineHost, given: Mapping[str, Any]) -> None:
    """Load the model as it would be loaded by those who ask for it, and let them know."""
    try:
        folder = read_folder(Path(given["folder"]), Path(given["tokenizer"]))
        options = EngineOptions(**given["options"])
        policy = ServingPolicy(**given["policy"])

        @cache
        def tokenizer() -> PromptTokenizer:
            return PromptTokenizer(folder.tokenizer_path)

        def grammars(vocab_size: int, eos: frozenset[int]) -> GrammarCompiler:
            return tokenizer().grammars(vocab_size, eos)

        adapters = {name: Path(path) for name, path in given["adapters"].items()}
        with fitted(adapters, folder) as files:
            engine = start_engine(folder, grammars, options, policy, files)
    except GenAIError as error:
        host.fail(error)
        return
    except BaseException as error:
        host.fail(GenAIError(f"The worker cannot load the model ({type(error).__name__})."))
        raise
    engine.after_step = host.flush
    host.open(engine, {"kv_tokens": engine.kv_tokens, "loop": engine.loop_name, "pid": os.getpid()})


def _die_with(parent: int) -> None:
    """Let the system kill this process with its parent, where it can.

    Elsewhere, and later than here, the end of the connection does.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
