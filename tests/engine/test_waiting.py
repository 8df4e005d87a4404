"""Who waits takes turns, and many who wait cost no more than a few."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_phi3_onnx import GenerationTimeoutError
from mlflow_phi3_onnx.engine import inprocess
from mlflow_phi3_onnx.engine.waiting import LOOKED_AT, WaitingJobs
from tests.support.engines import ScriptedLoop, engine, job, until


def call(name: str, count: int, deadline: float | None = None) -> list[Any]:
    return [
        SimpleNamespace(name=f"{name}{i}", finished=False, deadline=deadline) for i in range(count)
    ]


def names(waiting: WaitingJobs) -> list[str]:
    first: list[Any] = list(waiting.first())
    return [ticket.name for ticket in first]


def test_calls_take_turns() -> None:
    waiting = WaitingJobs()
    waiting.add(call("a", 4))
    waiting.add(call("b", 2))
    assert names(waiting) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_who_comes_later_does_not_overtake_for_ever() -> None:
    waiting = WaitingJobs()
    waiting.add(call("a", 4))
    waiting.remove(waiting.first()[:2])
    assert names(waiting) == ["a2", "a3"]
    waiting.add(call("b", 1))
    assert names(waiting) == ["b0", "a2", "a3"]
    waiting.remove(waiting.first()[:2])
    waiting.add(call("c", 2))
    assert names(waiting) == ["c0", "a3", "c1"]


def test_no_more_are_looked_at_than_a_step_can_bear() -> None:
    waiting = WaitingJobs()
    tickets = call("a", LOOKED_AT + 2)
    tickets[0].finished = True
    waiting.add(tickets)
    assert len(waiting.first()) == LOOKED_AT
    assert names(waiting)[-1] == f"a{LOOKED_AT}"
    assert len(waiting) == LOOKED_AT + 1, "what is finished is forgotten"
    waiting.remove(waiting.first())
    assert names(waiting) == [f"a{LOOKED_AT + 1}"]


def test_deadlines_are_found_in_order() -> None:
    waiting = WaitingJobs()
    waiting.add(call("late", 1, 9.0))
    waiting.add(call("soon", 2, 3.0))
    waiting.add(call("never", 1))
    expired: list[Any] = list(waiting.expired(3.5))
    assert [ticket.name for ticket in expired] == ["soon0", "soon1"]
    assert list(waiting.expired(9.0)) == []
    assert len(list(waiting.expired(9.1))) == 1


def test_a_call_of_many_jobs_keeps_nobody_out(tokenizer: Any) -> None:
    loop = ScriptedLoop(token=5)
    loop.room = 12
    loop.gate.clear()
    running = engine(loop, tokenizer)
    many: list[Any] = running.submit([job(1, 5) for _ in range(20)])
    until(lambda: len(loop.states) == 2)
    one: Any = running.submit([job(1, 5)])[0]
    loop.gate.set()
    assert [ticket.result().tokens for ticket in [*many, one]] == [5] * 21
    # The two that ran when it came, and then its turn.
    assert loop.begun.index(one.handle) == 2
    running.close()


def test_who_waits_is_given_up_at_its_deadline_while_another_runs(tokenizer: Any) -> None:
    loop = ScriptedLoop(token=5)
    loop.room = 2_000_001
    running = engine(loop, tokenizer)
    first: Any
    first, waits = running.submit([job(1, 2_000_000), job(1, 2_000_000, timeout=0.05)])
    with pytest.raises(GenerationTimeoutError):
        waits.result()
    assert not first.handle.finished
    first.cancel()
    running.close()


def test_who_runs_is_given_up_at_its_own_deadline(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = ScriptedLoop(token=5)
    loop.room = 4_000_002
    running = engine(loop, tokenizer)
    late: Any
    patient: Any
    late, patient = running.submit([job(1, 2_000_000, timeout=t) for t in (1000, 3000)])
    until(lambda: loop.steps > 0)
    now = time.monotonic() + 2000
    monkeypatch.setattr(inprocess, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(GenerationTimeoutError):
        late.result()
    assert loop.begun == [late.handle, patient.handle]
    assert 0 < len(late.handle.tokens) < 2_000_000
    before = len(patient.handle.tokens)
    until(lambda: len(patient.handle.tokens) > before + 2)
    assert loop.states == [patient.handle]
    patient.cancel()
    running.close()
