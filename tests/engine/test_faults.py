"""The engine's thread is never lost for good, and a late cancel stops nobody else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_phi3_onnx import GenAIModel, GenerationError
from mlflow_phi3_onnx.core.request import Options
from mlflow_phi3_onnx.engine.loops import prefill
from tests.support.engines import ScriptedLoop, engine, job, submit, until

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer


class Panic(BaseException):
    """What native code may raise: no Exception."""


def test_a_thread_that_cannot_start_is_an_error_and_the_next_call_starts_one(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    running = engine(ScriptedLoop(token=5), tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(GenerationError, match="thread cannot be started"):
            running.submit([job()])
    (ticket,) = running.submit([job()])
    assert ticket.result().tokens == 5
    running.close()


@pytest.mark.parametrize("where", ["step", "admit"])
def test_whatever_ends_the_thread_fails_all_callers_and_the_next_call_starts_anew(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loop = ScriptedLoop(token=5)
    loop.room = 12
    loop.gate.clear()
    running: Any = engine(loop, tokenizer)
    first, waits = running.submit([job(6, 5), job(6, 5)])
    stream = running.deltas(job(6, 5))
    until(lambda: bool(loop.states))

    def panic(*_: Any) -> None:
        raise Panic

    with monkeypatch.context() as patch:
        patch.setattr(loop, where, panic)
        loop.gate.set()
        for answer in (first.result, waits.result, lambda: list(stream)):
            with pytest.raises(GenerationError, match=r"The engine failed \(Panic\)"):
                answer()
        until(lambda: running.engine._thread is None)
    loop.states.clear()
    (after,) = running.submit([job(6, 5)])
    assert after.result().tokens == 5
    running.close()


def test_a_cancel_that_comes_late_leaves_the_next_prompt_to_be_answered(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canceller is held up between its look at the loop and its call; others go on."""
    monkeypatch.setattr(prefill, "MAX_CHUNK", 4096)
    monkeypatch.setattr(prefill, "FIRST", 4096)
    config = {"loop": "slots", "prefix_cache": False}
    with GenAIModel(demo, model_config=config) as loaded:
        model: Any = loaded
        loop = model._engine._loop
        session = loop._session
        interrupt, interrupted = session.interrupt, threading.Event()

        def late() -> None:
            handle: Any = second.handle
            until(lambda: loop._computing is handle and session._running is not None)
            interrupt()
            interrupted.set()

        monkeypatch.setattr(session, "interrupt", late)
        prompts = [np.full(3900, token, dtype=np.int32) for token in (400, 401)]
        first, second = submit(model, *((prompt, 2, Options()) for prompt in prompts))
        until(lambda: loop._computing is not None)
        first.cancel()
        assert second.result().tokens >= 1
        assert interrupted.is_set()
