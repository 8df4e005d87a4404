"""Concurrency, cancellation, memory and failures."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_phi3_onnx import (
    CancelledError,
    GenAIModel,
    GenerationError,
    InvalidRequestError,
    MemoryBudgetError,
    UnsupportedParameterError,
)
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.core.request import Options, Sampling
from mlflow_phi3_onnx.runtime.genai import NativeModel
from tests.support.engines import ScriptedLoop, engine, job, submit, until

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

STORY = [{"role": "user", "content": "Tell me a long story."}]


def test_32_threads_get_what_each_gets_alone(model: GenAIModel) -> None:
    countries = ["Spain", "France", "Italy", "Japan", "Germany", "Portugal", "Greece", "Norway"]
    requests: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": f"What is the capital of {c}?"}],
            **extra,
        }
        for c in countries
        for extra in (
            {},
            {"temperature": 1.2, "seed": 3},
            {"max_tokens": 4, "stop": "of"},
            {"frequency_penalty": 1.0},
        )
    ]
    assert len(requests) == 32
    alone = [model.chat(**request)["choices"] for request in requests]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda request: model.chat(**request)["choices"], requests))
    assert together == alone


def test_streams_and_predictions_side_by_side(model: GenAIModel) -> None:
    whole = model.chat(STORY)["choices"][0]["message"]["content"]

    def stream(_: int) -> str:
        return "".join(
            choice["delta"].get("content", "")
            for chunk in model.stream_chat(STORY)
            for choice in chunk["choices"]
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stream, range(4))) == [whole] * 4


@pytest.fixture
def scripted(tokenizer: PromptTokenizer) -> ScriptedLoop:
    return ScriptedLoop(int(tokenizer.encode("a")[-1]))


def test_leaving_a_stream_stops_the_work(model: GenAIModel) -> None:
    stream = model.stream_chat(STORY)
    for _ in range(4):
        next(stream)
    stream.close()
    # The engine is idle again long before the story would have ended: a short answer comes next.
    assert model.chat(STORY, max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows has no such signals")
@pytest.mark.parametrize("rows", [1, 3])
def test_an_interrupted_wait_stops_the_work(
    demo: Path, loop: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """As Ctrl-C does; of three rows, one waits for its turn."""
    with GenAIModel(demo, model_config={"loop": loop, "max_batch_size": 2}) as model:
        taken: list[Any] = []
        submit_jobs = model._engine.submit

        def watched(*arguments: Any) -> Any:
            taken.extend(submit_jobs(*arguments))
            return taken

        caller = threading.get_ident()

        def waits() -> bool:
            return sys._current_frames()[caller].f_code is threading.Condition.wait.__code__

        def interrupt() -> None:
            until(lambda: any(state.tokens for state in taken) and waits())
            signal.pthread_kill(caller, signal.SIGINT)

        monkeypatch.setattr(model._engine, "submit", watched)
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            model.generate(["Once"] * rows, min_tokens=3000)
        interrupting.join()
        assert len(taken) == rows
        until(lambda: all(state.finished for state in taken))
        assert all(len(state.tokens) < 3000 for state in taken)


def test_a_stop_sequence_stops_the_work_for_one_of_several(
    demo: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GenAIModel(demo, model_config={"loop": loop}) as model:
        taken: list[Any] = []
        submit_jobs = model._engine.submit
        monkeypatch.setattr(
            model._engine, "submit", lambda *given: taken.extend(submit_jobs(*given)) or taken
        )
        asked = {"stop": ["Madrid"], "min_tokens": 1000, "max_tokens": 1000}
        prompts = ["The capital of Spain is", "The capital of Italy is"]
        chunks = list(model.stream_complete(prompts, **asked))
        assert [len(state.tokens) for state in taken][1] == 1000
        assert len(taken[0].tokens) < 1000
    text = "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == 0)
    assert text == " "


def test_a_closed_stream_computes_at_most_one_more_step(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    running = engine(scripted, tokenizer)
    pieces = iter(running.deltas(job(max_tokens=4000)))
    next(pieces)
    scripted.gate.clear()
    before = scripted.steps
    pieces.close()
    scripted.gate.set()
    running.submit([job(max_tokens=1)])[0].result()
    assert scripted.steps <= before + 2  # one step under way at most, and the new job's own
    running.close()


def test_a_cancelled_row_leaves_its_batch_mates_alone(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    running = engine(scripted, tokenizer)
    scripted.gate.clear()
    first, second = running.submit([job(max_tokens=50), job(max_tokens=50)])
    first.cancel()
    scripted.gate.set()
    with pytest.raises(CancelledError):
        first.result()
    assert second.result().tokens == 50
    running.close()


@pytest.mark.parametrize("error", [RuntimeError("secret prompt"), GenerationError("it broke")])
def test_a_failure_reaches_its_callers_and_the_engine_goes_on(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer, error: Exception
) -> None:
    running = engine(scripted, tokenizer)
    scripted.fail = error
    tickets = running.submit([job(), job()])
    stream = running.deltas(job())
    for ticket in tickets:
        with pytest.raises(GenerationError) as caught:
            ticket.result()
        assert "secret" not in caught.value.message
    with pytest.raises(GenerationError):
        list(stream)
    scripted.fail = None
    assert running.submit([job()])[0].result().tokens == 5
    running.close()


def test_a_row_that_cannot_choose_fails_alone(demo: Path, loop: str) -> None:
    with GenAIModel(demo, model_config={"loop": loop}) as model:
        vocabulary = model.limits.vocab_size
        # Every id is forbidden by an infinite penalty; the checks above the engine would refuse it.
        impossible = Options(
            sampling=Sampling(logit_bias=dict.fromkeys(range(vocabulary), -np.inf))
        )
        prompt = np.array([5, 6, 7], dtype=np.int32)
        plain = (prompt, 4, Options())
        bad, good = submit(model, (prompt, 4, impossible), plain)
        with pytest.raises(GenerationError, match="not finite"):
            bad.result()
        assert good.result() == submit(model, plain)[0].result()


def test_what_is_cancelled_while_it_waits_never_begins(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    scripted.room = 20
    running: Any = engine(scripted, tokenizer)
    scripted.gate.clear()
    first, waits, last = running.submit([job(length=10, max_tokens=10) for _ in range(3)])
    stream = running.deltas(job(length=10, max_tokens=10))
    until(lambda: len(scripted.states) == 1)
    waits.cancel()
    with pytest.raises(CancelledError):  # at once: the gate is closed
        waits.result()
    stream.cancel()
    scripted.gate.set()
    assert [ticket.result().tokens for ticket in (first, last)] == [10, 10]
    with pytest.raises(CancelledError):
        list(stream)
    assert scripted.begun == [first.handle, last.handle]
    assert running.submit([job(length=10, max_tokens=10)])[0].result().tokens == 10
    assert scripted.steps == 30
    running.close()


def test_a_late_request_does_not_wait_for_a_long_answer(
    scripted: ScriptedLoop, tokenizer: PromptTokenizer
) -> None:
    running = engine(scripted, tokenizer)
    long = running.deltas(job(max_tokens=4000))
    pieces = iter(long)
    next(pieces)
    scripted.gate.clear()  # or the long one may be over before the other arrives
    (late,) = running.submit([job(max_tokens=3)])
    begun = scripted.steps
    scripted.gate.set()
    assert late.result().tokens == 3
    assert begun < scripted.ends[0] < 4000
    long.cancel()
    running.close()


def test_kv_memory_is_a_budget(scripted: ScriptedLoop, tokenizer: PromptTokenizer) -> None:
    scripted.room = 20
    running = engine(scripted, tokenizer)
    scripted.gate.clear()
    tickets = running.submit([job(length=3, max_tokens=5) for _ in range(4)])
    until(lambda: len(scripted.states) == 2)
    scripted.gate.set()
    assert [ticket.result().tokens for ticket in tickets] == [5] * 4
    assert scripted.steps == 10
    with pytest.raises(MemoryBudgetError, match=r"takes 23 bytes; kv_cache_memory allows 20"):
        running.submit([job(length=3, max_tokens=20)])
    running.close()


def test_a_small_job_does_not_overtake_one_that_waits_for_memory(demo: Path, loop: str) -> None:
    with GenAIModel(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    config = {"kv_cache_memory": per_token * 100, "loop": loop}
    with GenAIModel(demo, model_config=config) as model:
        running = model._engine._loop  # type: ignore[attr-defined] - below every interface
        admit, begun = running.admit, list[list[int]]()

        def watched(waiting: Any) -> Any:
            taken = admit(waiting)
            if taken:
                begun.append([state.max_tokens for state in waiting if state in taken])
            return taken

        running.admit = watched  # type: ignore[method-assign] - it does what it did
        prompt = np.full(10, 400, dtype=np.int32)
        tickets = submit(model, *((prompt, most, Options()) for most in (50, 40, 5)))
        assert all(0 < ticket.result().tokens <= 50 for ticket in tickets)
    assert begun == [[50], [40, 5]]


def test_the_budget_holds_what_fits_exactly(demo: Path, loop: str) -> None:
    with GenAIModel(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    config = {"kv_cache_memory": per_token * 31 - 1, "loop": loop}
    prompt = [400] * 10
    with GenAIModel(demo, model_config=config) as model:
        usage = model.complete(prompt, max_tokens=20, min_tokens=20)["usage"]
        assert usage["total_tokens"] == 30
        with pytest.raises(MemoryBudgetError, match="10 prompt tokens and 21 completion tokens"):
            model.complete(prompt, max_tokens=21)
        # Without a limit of its own, it has what there is room for, but always one.
        with pytest.raises(MemoryBudgetError, match="30 prompt tokens and 1 completion tokens"):
            model.complete([400] * 30)
        assert model.complete([400] * 29)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("growth", [8, 512])
def test_no_more_memory_is_taken_than_there_is(
    demo: Path, loop: str, monkeypatch: pytest.MonkeyPatch, growth: int
) -> None:
    """At any moment, by what runs and by what is remembered together."""
    monkeypatch.setattr("mlflow_phi3_onnx.engine.loops.genai_batch.GROWTH", growth)
    made = weakref.WeakSet[Any]()
    make = NativeModel.generator

    def watched(*arguments: Any) -> Any:
        generator = make(*arguments)
        made.add(generator)
        note()
        return generator

    def taken() -> int:
        if loop == "slots":
            table = running._table
            reserved = sum(s.state.most_tokens for s in table.slots if s.state is not None)
            return reserved + sum(len(s) for s in table.slots if s.state is None)
        return sum(generator.rows * generator.max_length for generator in made)

    def note() -> None:
        seen.append(taken())

    def stepped() -> None:
        step()
        note()

    with GenAIModel(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    config = {"kv_cache_memory": per_token * 100, "loop": loop, "max_batch_size": 4}
    with GenAIModel(demo, model_config=config) as model:
        running: Any = model._engine._loop  # type: ignore[attr-defined] - below every interface
        step, seen = running.step, list[int]()
        running.step = stepped
        monkeypatch.setattr(NativeModel, "generator", watched)
        jobs = [
            (np.full(5 + 7 * i % 23, 400 + i % 3, dtype=np.int32), 3 + 11 * i % 41, Options())
            for i in range(30)
        ]
        tickets = [*submit(model, *jobs), *submit(model, *jobs[::-1])]
        assert all(ticket.result().tokens > 0 for ticket in tickets)
        # Two that run in what two larger ones have left, and one that comes when they do.
        prompt = np.full(10, 400, dtype=np.int32)
        large, small, late = ((prompt, n, Options(min_tokens=n)) for n in (30, 20, 25))
        assert [t.result().tokens for t in submit(model, large, large)] == [30, 30]
        pair: list[Any] = submit(model, small, small)
        until(lambda: all(ticket.handle.tokens for ticket in pair))
        (last,) = submit(model, late)
        assert [t.result().tokens for t in (*pair, last)] == [20, 20, 25]
    assert 80 < max(seen) <= 100


@pytest.mark.parametrize(("common", "found"), [(7, 0), (8, 8), (17, 17), (18, 18), (20, 18)])
def test_a_beginning_is_found_again_if_it_is_worth_it(
    demo: Path, loop: str, common: int, found: int
) -> None:
    """The fewest that are worth it are 8; the last two of a prompt are always computed."""
    with GenAIModel(demo, model_config={"loop": loop}) as model:
        first, second = ([400] * common + [other] * (20 - common) for other in (401, 402))
        model.complete(first, max_tokens=1)
        usage = model.complete(second, max_tokens=1)["usage"]
    assert usage.get("prompt_tokens_details", {"cached_tokens": 0}) == {"cached_tokens": found}


def test_without_max_tokens_the_budget_bounds_the_answer(demo: Path, loop: str) -> None:
    with GenAIModel(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    config = {"kv_cache_memory": per_token * 30, "loop": loop}
    with GenAIModel(demo, model_config=config) as model:
        usage = model.chat(STORY)["usage"]
        assert usage["total_tokens"] == 30
        with pytest.raises(MemoryBudgetError, match="kv_cache_memory"):
            model.chat(STORY, max_tokens=100)


def test_an_answer_longer_than_the_first_cache_is_the_same(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"messages": STORY}, {"messages": STORY, "max_tokens": 7}, {"messages": STORY, "n": 2}]
    with GenAIModel(demo) as model:
        expected = [r["choices"] for r in model.run("llm/v1/chat", rows)]
        monkeypatch.setattr("mlflow_phi3_onnx.engine.loops.genai_batch.GROWTH", 16)
        assert [r["choices"] for r in model.run("llm/v1/chat", rows)] == expected


def test_closing_cancels_what_runs_and_refuses_what_comes(demo: Path, loop: str) -> None:
    model = GenAIModel(demo, model_config={"loop": loop})
    stream = model.stream_chat(STORY)
    next(stream)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(CancelledError):
        list(stream)
    with pytest.raises(CancelledError, match="closed"):
        model.chat(STORY)


def test_closing_cancels_what_waits_too(scripted: ScriptedLoop, tokenizer: PromptTokenizer) -> None:
    scripted.room = 20
    running: Any = engine(scripted, tokenizer)
    scripted.gate.clear()
    first, waits = running.submit([job(length=10, max_tokens=10) for _ in range(2)])
    stream = running.deltas(job(length=10, max_tokens=10))
    until(lambda: len(scripted.states) == 1)
    closing = threading.Thread(target=running.close)
    closing.start()
    until(lambda: running.engine._closed)
    scripted.gate.set()
    closing.join(20)
    assert scripted.begun == [first.handle]
    for ticket in (first, waits):
        until(ticket._future.done)
        with pytest.raises(CancelledError, match="was closed"):
            ticket.result()
    with pytest.raises(CancelledError, match="was closed"):
        list(stream)


def test_a_closed_model_is_freed_though_it_is_held(demo: Path, loop: str) -> None:
    model = GenAIModel(demo, model_config={"loop": loop})
    model.chat(STORY, max_tokens=2)
    running: Any = model._engine._loop  # type: ignore[attr-defined] - below every interface
    loaded = weakref.ref(running._session if loop == "slots" else running._pool)
    model.close()
    gc.collect()
    assert loaded() is None


def test_a_model_that_nobody_holds_is_freed(demo: Path, loop: str) -> None:
    model = GenAIModel(demo, model_config={"loop": loop})
    model.chat(STORY, max_tokens=2)
    engine = weakref.ref(model._engine)
    names = {thread.name for thread in threading.enumerate()}
    assert "onnx-genai-engine" in names
    del model
    gc.collect()
    until(lambda: engine() is None)


@pytest.mark.parametrize(("name", "fewest"), [("genai", 2), ("slots", 7)])
def test_kv_memory_that_is_too_little_for_any_request_is_refused(
    demo: Path, name: str, fewest: int, caplog: pytest.LogCaptureFixture
) -> None:
    least = fewest * read_folder(demo).kv_bytes_per_token
    with pytest.raises(InvalidRequestError) as caught:
        GenAIModel(demo, model_config={"loop": name, "kv_cache_memory": least - 1})
    assert caught.value.param == "kv_cache_memory"
    assert caught.value.message.startswith(
        f"kv_cache_memory must be at least {least:,} bytes for the {name} loop, the KV cache of"
        f" {fewest} tokens; got {least - 1:,}."
    )
    caplog.set_level(logging.INFO)
    with GenAIModel(demo, model_config={"loop": name, "kv_cache_memory": least}) as model:
        assert model.complete([5], max_tokens=1)["usage"]["total_tokens"] == 2
    assert f"KV cache of at most {fewest} tokens ({least:,} bytes)." in caplog.text


def test_a_loop_is_chosen_that_the_memory_is_enough_for(
    demo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    per_token = read_folder(demo).kv_bytes_per_token
    caplog.set_level(logging.INFO)
    config = {"loop": "auto", "kv_cache_memory": 7 * per_token - 1}
    with GenAIModel(demo, model_config=config) as model:
        assert model._engine._loop.name == "genai"  # type: ignore[attr-defined] - below every interface
    assert f"not slots: kv_cache_memory must be at least {7 * per_token:,} bytes" in caplog.text
    config["kv_cache_memory"] = 2 * per_token - 1
    with pytest.raises(
        InvalidRequestError, match=f"at least {2 * per_token:,} bytes for the genai"
    ):
        GenAIModel(demo, model_config=config)


def test_a_machine_with_too_little_memory_says_so(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_phi3_onnx.model.start.available_memory", lambda: 1000)
    with pytest.raises(InvalidRequestError, match="its share of available memory is less"):
        GenAIModel(demo)


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"max_tokens": 0}, InvalidRequestError, "model_config: max_tokens must be"),
        ({"max_batch_size": 33}, InvalidRequestError, "model_config: max_batch_size must be"),
        ({"kv_cache_memory": "1GB"}, InvalidRequestError, "integer from 1; got '1GB'"),
        ({"max_new_tokens": 3}, UnsupportedParameterError, "Use max_tokens"),
        ({"tools": []}, UnsupportedParameterError, "belongs to a single request"),
        ({"max_tokenz": 3}, UnsupportedParameterError, "Did you mean max_tokens"),
    ],
)
def test_bad_configurations(
    demo: Path, config: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        GenAIModel(demo, model_config=config)
