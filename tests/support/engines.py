"""A loop that does what a real one cannot be made to do, and engines that run it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.core.request import Options
from mlflow_phi3_onnx.engine.base import Job
from mlflow_phi3_onnx.engine.inprocess import InProcessEngine
from mlflow_phi3_onnx.engine.loops.base import Failing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_phi3_onnx.engine.sequence.state import Row
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["ScriptedLoop", "engine", "job", "until"]


class ScriptedLoop:
    """Writes one token again and again; it waits at a gate before each step, and fails on demand.

    Args:
        token: The token.
    """

    def __init__(self, token: int) -> None:
        self.name = "scripted"
        self.token = token
        self.steps = 0
        self.room = 10_000
        self.fail: Exception | None = None
        self.scores = self.drafts = True
        self.gate = threading.Event()
        self.gate.set()
        self.rows: list[Row] = []
        self.begun: list[Row] = []

    def needs(self, row: Row) -> int:
        return len(row.prompt) + row.max_tokens

    def admit(self, waiting: Sequence[Row]) -> list[Row]:
        free = self.room - sum(map(self.needs, self.rows))
        taken: list[Row] = []
        for row in waiting:
            free -= self.needs(row)
            if free < 0:
                break
            taken.append(row)
        self.rows += taken
        self.begun += taken
        return taken

    @property
    def busy(self) -> bool:
        return bool(self.rows)

    def step(self) -> None:
        self.gate.wait(20)
        self.steps += 1
        with Failing(self.rows):
            if self.fail is not None:
                raise self.fail
            for row in self.rows:
                if not row.over:
                    row.take(self.token)
        self.rows = [row for row in self.rows if not row.over]

    def interrupt(self, row: Row) -> None:
        pass

    def close(self) -> None:
        pass


def engine(loop: ScriptedLoop, tokenizer: PromptTokenizer, **options: Any) -> InProcessEngine:
    """An engine that runs a scripted loop."""
    return InProcessEngine(
        loop,
        tokenizer=tokenizer,
        eos=frozenset({0}),
        vocab_size=100,
        kv_tokens=loop.room,
        kv_bytes_per_token=1,
        **options,
    )


def job(length: int = 1, max_tokens: int = 5, **options: Any) -> Job:
    """A job with a prompt of a given length."""
    return Job(np.ones(length, dtype=np.int32), max_tokens, Options(**options))


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
