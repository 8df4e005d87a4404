"""A loop that does what a real one cannot be made to do, and engines that run it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.core.request import Delta, Options
from mlflow_phi3_onnx.engine.base import Job
from mlflow_phi3_onnx.engine.inprocess import InProcessEngine
from mlflow_phi3_onnx.engine.loops.base import Failing, Loop
from mlflow_phi3_onnx.model.planned import PlannedRequest
from mlflow_phi3_onnx.model.running import TextEngine
from mlflow_phi3_onnx.openai.responses import PlainWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.engine.sequence.state import SequenceState
    from mlflow_phi3_onnx.model.running import CompletionHandle
    from mlflow_phi3_onnx.model.streaming import ChunkStream
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["EngineUnderTest", "ScriptedLoop", "engine", "job", "submit", "until"]


class ScriptedLoop(Loop):
    """Writes one token again and again; it waits at a gate before each step, and fails on demand.

    Args:
        token: The token.
    """

    def __init__(self, token: int) -> None:
        self.name = "scripted"
        self.token = token
        self.steps = 0
        self.ends: list[int] = []
        self.room = 10_000
        self.fail: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.states: list[SequenceState] = []
        self.begun: list[SequenceState] = []

    def admit(self, waiting: Sequence[SequenceState]) -> list[SequenceState]:
        free = self.room - sum(state.most_tokens for state in self.states)
        taken: list[SequenceState] = []
        for state in waiting:
            free -= state.most_tokens
            if free < 0:
                break
            taken.append(state)
        self.states += taken
        self.begun += taken
        return taken

    @property
    def busy(self) -> bool:
        return bool(self.states)

    def step(self) -> None:
        self.gate.wait(20)
        self.steps += 1
        with Failing(self.states):
            if self.fail is not None:
                raise self.fail
            for state in self.states:
                if not state.finished:
                    state.take(self.token)
        self.ends += [self.steps for state in self.states if state.finished]
        self.states = [state for state in self.states if not state.finished]

    def close(self) -> None:
        pass


class DeltaWriter(PlainWriter):
    """Writes deltas as they are."""

    def add(self, index: int, delta: Delta) -> Iterator[Any]:
        del index  # there is only one
        yield delta


class EngineUnderTest(TextEngine):
    """An engine that runs a scripted loop, and what makes text of its tokens."""

    def __init__(self, loop: ScriptedLoop, tokenizer: PromptTokenizer, **options: Any) -> None:
        eos = frozenset({0})
        self.engine = InProcessEngine(
            loop,
            grammars=lambda: tokenizer.grammars(100, eos),
            eos=eos,
            vocab_size=100,
            kv_tokens=loop.room,
            kv_bytes_per_token=1,
            **options,
        )
        super().__init__(self.engine, tokenizer, eos)

    def deltas(self, asked: Job) -> ChunkStream:
        """Run a job as a stream of its deltas."""
        return self.stream(PlannedRequest([asked], list, DeltaWriter))

    def close(self) -> None:
        self.engine.close()


engine = EngineUnderTest


def job(length: int = 1, max_tokens: int = 5, timeout: float | None = None) -> Job:
    """A job with a prompt of a given length."""
    return Job(np.ones(length, dtype=np.int32), max_tokens, Options(timeout=timeout))


def submit(model: Any, *jobs: tuple[NDArray[np.int32], int, Options]) -> list[CompletionHandle]:
    """Let a model's engine take jobs: prompts, the most tokens, and options of a request."""
    encode = model._tokenizer.encode
    return model._texts.submit(
        [
            Job(prompt, most, asked, draft_source=tuple(encode(asked.prediction or "").tolist()))
            for prompt, most, asked in jobs
        ]
    )


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
