"""Calls of an engine through a host, with a loop that waits where it is told to."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import (
    CancelledError,
    EngineDeadError,
    GenerationError,
    GenerationTimeoutError,
    InvalidRequestError,
    MemoryBudgetError,
)
from mlflow_phi3_onnx.core.request import Grammar, Options
from mlflow_phi3_onnx.engine.worker import pulse, remote
from mlflow_phi3_onnx.engine.worker.connection import Connection
from tests.support.engines import ScriptedLoop, job, until
from tests.support.hosted import Hosted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_phi3_onnx.engine.base import TokenDelta
    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer


class Taken(list[Any]):
    """What was delivered, by position."""

    def __call__(self, position: int, arrived: TokenDelta | GenAIError) -> bool:
        self.append((position, arrived))
        return True

    @property
    def last(self) -> Any:
        return self[-1][1]


def _is_late(deadline: float | None) -> bool:
    return deadline is not None and deadline < time.monotonic()


@pytest.fixture
def hosted(tokenizer: PromptTokenizer) -> Iterator[Hosted]:
    held = Hosted(ScriptedLoop(int(tokenizer.encode("a")[-1])), tokenizer)
    yield held
    held.close()


def test_a_request_of_several_jobs(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()
    assert engine.kv_tokens == hosted.loop.room
    engine.submit([replace(job(max_tokens=2), streamed=True), job(max_tokens=3)], taken)
    until(lambda: len(taken) == 3)
    by_position = [[delta for place, delta in taken if place == p] for p in (0, 1)]
    assert [len(delta.token_ids) for delta in by_position[0]] == [1, 1]
    assert [len(delta.token_ids) for delta in by_position[1]] == [3]
    assert [deltas[-1].finish_reason for deltas in by_position] == ["length", "length"]
    assert (engine._jobs, engine._requests) == ({}, {})
    engine.close()


def test_a_worker_that_does_not_come_out_of_a_step_is_ended(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pulse, "GRACE_S", 0.2)
    engine, stuck, late = hosted.caller(longest=0.2), Taken(), Taken()
    hosted.loop.gate.clear()
    engine.submit([job()], stuck)
    until(lambda: hosted.inside.step_began is not None)
    until(lambda: len(hosted.workers) == 2)
    assert isinstance(stuck.last, EngineDeadError)
    assert "is ended: a step has taken" in caplog.text
    hosted.loop.gate.set()
    engine.submit([job()], late)
    until(lambda: bool(late))
    engine.close()


def test_one_job_is_given_up_where_its_neighbour_waits_on(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "GRACE_S", 0.1)
    engine, taken = hosted.caller(), Taken()
    hosted.loop.gate.clear()
    engine.submit([replace(job(), options=Options(timeout=0.1)), job(max_tokens=2)], taken)
    until(lambda: bool(taken))
    hosted.loop.gate.set()
    until(lambda: len(taken) == 2)
    (first, error), (second, delta) = taken
    assert (first, type(error)) == (0, GenerationTimeoutError)
    assert (second, delta.finish_reason) == (1, "length")
    assert engine._jobs == {}
    engine.close()


def test_a_worker_that_is_idle_or_takes_many_steps_is_not_ended(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "GRACE_S", 1.0)
    beats: list[float] = []
    answered = pulse.Pulse.answered

    def noted(one: pulse.Pulse, seconds: float) -> None:
        beats.append(seconds)
        answered(one, seconds)

    monkeypatch.setattr(pulse.Pulse, "answered", noted)
    engine, taken = hosted.caller(longest=0.2), Taken()
    until(lambda: len(beats) > pulse._BEATS)
    assert not any(beats)
    step = hosted.loop.step

    def slower() -> None:
        time.sleep(0.02)
        step()

    monkeypatch.setattr(hosted.loop, "step", slower)
    while len(beats) < 3 * pulse._BEATS:
        engine.submit([job(max_tokens=5)], taken)
        until(lambda: len(taken) > 0)
        taken.clear()
    count = len(beats)
    until(lambda: len(beats) > count + pulse._BEATS)  # idle again
    assert beats[-1] == 0
    assert len(hosted.workers) == 1
    engine.close()


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (job(length=9_999, max_tokens=2), MemoryBudgetError),
        (replace(job(), options=Options(grammar=Grammar("regex", "(a"))), InvalidRequestError),
    ],
)
def test_what_is_refused_is_refused_whole(hosted: Hosted, asked: Any, kind: Any) -> None:
    engine, taken = hosted.caller(), Taken()
    with pytest.raises(kind) as inline:
        hosted.inside.submit([job(), asked], taken)
    with pytest.raises(kind) as caught:
        engine.submit([job(), asked], taken)
    assert caught.value.message == inline.value.message
    assert caught.value.param == inline.value.param
    engine.submit([job(length=9_998, max_tokens=2)], taken)
    until(lambda: len(taken) == 1)
    assert len(hosted.loop.begun) == 1
    assert (engine._jobs, engine._requests) == ({}, {})
    engine.close()


def test_a_cancelled_job_ends_here_at_once_and_there_after_a_step(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()
    hosted.loop.gate.clear()
    (handle,) = engine.submit([job(max_tokens=4000)], taken)
    until(lambda: len(hosted.loop.begun) == 1)
    handle.cancel()
    handle.cancel()
    assert isinstance(taken.last, CancelledError)
    until(lambda: hosted.loop.begun[0].finished)
    hosted.loop.gate.set()
    until(lambda: not hosted.loop.busy)
    assert (len(taken), len(hosted.loop.begun[0].tokens)) == (1, 0)
    assert engine._jobs == {}
    engine.close()


def test_what_is_not_wanted_any_more_is_cancelled_there(hosted: Hosted) -> None:
    engine = hosted.caller()
    seen: list[Any] = []

    def deliver(position: int, arrived: Any) -> bool:
        seen.append((position, arrived))
        return len(seen) < 3

    (handle,) = engine.submit([replace(job(max_tokens=9000), streamed=True)], deliver)
    until(lambda: bool(hosted.loop.begun) and hosted.loop.begun[0].finished)
    handle.cancel()
    assert len(seen) == 3
    assert len(hosted.loop.begun[0].tokens) < 9000
    engine.close()


def test_an_interrupted_submission_is_taken_back(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does while the caller waits for the worker's word."""
    engine, taken = hosted.caller(), Taken()

    class Interrupted(remote.Future[None]):
        def result(self, timeout: float | None = None) -> None:
            super().result(timeout)
            raise KeyboardInterrupt

    monkeypatch.setattr(remote, "Future", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.submit([job(max_tokens=9000), job(max_tokens=9000)], taken)
    until(lambda: not hosted.loop.busy)
    assert taken == []
    assert all(len(state.tokens) < 9000 for state in hosted.loop.begun)
    engine.close()


def test_a_submission_that_is_taken_back_while_its_grammar_is_compiled(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, taken = hosted.caller(), Taken()
    submit = hosted.inside.submit
    compiling, compiled = threading.Event(), threading.Event()
    states: list[Any] = []

    class Interrupted(remote.Future[None]):
        def result(self, timeout: float | None = None) -> None:
            assert timeout is None
            assert compiling.wait(20)
            raise KeyboardInterrupt

    def slowly(*given: Any) -> Any:
        compiling.set()
        compiled.wait(20)
        states.extend(submit(*given))
        return states

    monkeypatch.setattr(remote, "Future", Interrupted)
    monkeypatch.setattr(hosted.inside, "submit", slowly)
    held = replace(job(max_tokens=9000), options=Options(grammar=Grammar("regex", "a*")))
    hosted.loop.gate.clear()
    with pytest.raises(KeyboardInterrupt):
        engine.submit([held], taken)
    (caller,) = hosted.host._callers
    until(lambda: caller._handles == {})
    compiled.set()
    until(lambda: bool(states) and states[0].finished)
    assert states[0].tokens == []
    assert caller._handles == {}
    engine.close()


def test_closing_ends_what_runs_and_others_go_on(hosted: Hosted) -> None:
    engine, other = hosted.caller(), hosted.caller()
    taken, others = Taken(), Taken()
    hosted.loop.gate.clear()
    engine.submit([job(max_tokens=9000)], taken)
    until(lambda: len(hosted.loop.begun) == 1)
    other.submit([job(max_tokens=3)], others)
    engine.close()
    engine.close()
    assert isinstance(taken.last, CancelledError)
    assert "was closed" in taken.last.message
    with pytest.raises(CancelledError, match="is closed"):
        engine.submit([job()], taken)
    until(lambda: hosted.loop.begun[0].finished)
    hosted.loop.gate.set()
    until(lambda: len(others) == 1)
    assert others.last.finish_reason == "length"
    assert not hosted.emptied.is_set()
    other.close()
    assert hosted.emptied.wait(20)
    until(lambda: not hosted.loop.busy)


def test_a_lost_worker_fails_what_is_inside_and_another_takes_over(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()
    hosted.loop.gate.clear()
    engine.submit([job(max_tokens=9000), job(max_tokens=9000)], taken)
    hosted.workers[0].connection.close()
    until(lambda: len(taken) == 2)
    for _, error in taken:
        assert isinstance(error, EngineDeadError)
        assert "(on purpose)" in error.message
        assert error.status == 503
    hosted.loop.gate.set()
    engine.submit([job(max_tokens=1)], taken)
    until(lambda: len(taken) == 3)
    assert taken.last.finish_reason == "length"
    assert (engine.deaths, len(hosted.workers)) == (1, 2)
    engine.close()


def test_a_worker_that_dies_too_often_is_not_started_again(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, taken = hosted.caller(), Taken()
    for death in range(1, remote.MOST_DEATHS + 2):
        engine.submit([job(max_tokens=1)], taken)
        until(lambda death=death: len(taken) == death)
        hosted.workers[-1].connection.close()
        until(lambda death=death: engine.deaths == death)
    until(lambda: engine._thread is None)
    assert len(hosted.workers) == remote.MOST_DEATHS + 1
    for _ in range(2):
        with pytest.raises(EngineDeadError, match=r"has died 4 times within 60 s.* refused for"):
            engine.submit([job()], taken)
    monkeypatch.setattr(remote, "WHILE_S", 0.0)
    engine.submit([job(max_tokens=1)], taken)
    until(lambda: len(taken) == remote.MOST_DEATHS + 2)
    engine.close()


def test_a_delivery_that_fails_stops_its_job_alone(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()

    def fail(_position: int, _arrived: Any) -> bool:
        raise RuntimeError

    engine.submit([replace(job(max_tokens=9000), streamed=True)], fail)
    until(lambda: bool(hosted.loop.begun) and hosted.loop.begun[0].finished)
    engine.submit([job(max_tokens=2)], taken)
    until(lambda: len(taken) == 1)
    assert engine.deaths == 0
    engine.close()


def test_a_caller_that_does_not_read_is_cut_off(hosted: Hosted) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    hosted.host.join(theirs)
    (silent,) = hosted.host._callers
    silent.connection._most_unread = 10_000
    asked = ["AQAAAA==", 9_999, {"ignore_eos": True, "top_logprobs": 20}, 0, True, []]
    lines = [["job", 0, 0, asked], ["submit", 0]]
    hosted.loop.gate.clear()
    ours.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    until(lambda: bool(hosted.loop.begun))
    most = 0
    hosted.loop.gate.set()
    while not hosted.loop.begun[0].finished:
        most = max(most, silent.connection._size)
    assert len(hosted.loop.begun[0].tokens) < 9_999
    assert most < 11_000
    assert hosted.emptied.wait(20)
    ours.close()


def test_a_caller_that_sends_nonsense_is_left_and_others_are_not(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()
    for nonsense in (
        b"{]\n",
        b'["job", 1]\n',
        b'["job", 1, 2, [[1], 1, {"x": 1}, 0, false, []]]\n',
    ):
        ours, theirs = socket.socketpair()
        hosted.host.join(theirs)
        ours.sendall(nonsense + b"\n")
        while ours.recv(1 << 16):
            pass
        ours.close()
    until(lambda: hosted.host.callers == 1)
    engine.submit([job(max_tokens=1)], taken)
    until(lambda: len(taken) == 1)
    engine.close()


def test_a_job_past_its_deadline_fails_there(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()
    hosted.loop.gate.clear()
    engine.submit([job(max_tokens=9000, timeout=0.05)], taken)
    until(lambda: bool(hosted.loop.begun) and _is_late(hosted.loop.begun[0].deadline))
    hosted.loop.gate.set()
    until(lambda: len(taken) == 1)
    assert isinstance(taken.last, GenerationTimeoutError)
    engine.close()


def test_a_timeout_counts_from_when_the_caller_asked(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, taken = hosted.caller(), Taken()
    clock = SimpleNamespace(monotonic=iter([100.0, 103.0]).__next__)
    monkeypatch.setattr(remote, "time", clock)
    engine.submit([job(max_tokens=1, timeout=5.0), job(max_tokens=1)], taken)
    until(lambda: len(taken) == 2)
    assert [state.options.timeout for state in hosted.loop.begun] == [2.0, None]
    engine.close()


def test_a_worker_that_is_not_ready_in_time(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, taken = hosted.caller(longest=0.05), Taken()
    monkeypatch.setattr(hosted.host, "_greeting", None)
    hosted.workers[0].connection.close()
    until(lambda: len(hosted.workers) == 2)
    with pytest.raises(GenerationTimeoutError, match="not ready when the timeout was over"):
        engine.submit([job()], taken)
    engine.close()


def test_an_engine_that_fails_fails_its_jobs_through_the_host(hosted: Hosted) -> None:
    engine, taken = hosted.caller(), Taken()
    hosted.loop.fail = ValueError("x")
    engine.submit([job(max_tokens=9000)], taken)
    until(lambda: len(taken) == 1)
    assert type(taken.last) is GenerationError
    assert taken.last.message == "Generation failed (ValueError)."
    engine.close()


def test_what_is_left_unread_is_bounded() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, most_unread=16)
    assert [connection.add("12345") for _ in range(4)] == [True, True, False, False]
    connection.free()
    bounded = Connection(theirs, most_unread=20)
    assert [bounded.add("12345") for _ in range(4)] == [True, True, True, False]
    bounded.free()


def test_a_message_longer_than_the_socket_takes_arrives_whole_and_in_order() -> None:
    ours, theirs = map(Connection, socket.socketpair())
    long = "x" * (4 << 20)
    for number in range(4):
        assert ours.send("m", number, long)
        assert ours.send("m", number)
    came: list[Any] = []
    for message in theirs:
        came.append(message)
        if len(came) == 8:
            break
    expected = [["m", n, *extra] for n in range(4) for extra in ([long], [])]
    assert came == expected
    ours.close()
    assert list(theirs) == []
    assert not ours.send("m")
    for end in (ours, theirs):
        end.free()
