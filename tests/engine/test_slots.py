"""The slots loop: joining and leaving, prefixes, prompts in pieces, memory."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_phi3_onnx import CancelledError, GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.core.request import Options
from mlflow_phi3_onnx.engine.loops import prefill as chunks
from mlflow_phi3_onnx.engine.options import LoopName, ServingPolicy
from mlflow_phi3_onnx.model.start import why_not_slots
from tests.support.doors import COUNTED
from tests.support.engines import submit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STORY = [{"role": "user", "content": "Tell me a long story."}]


def slots(demo: Path, **config: Any) -> GenAIModel:
    return GenAIModel(demo, model_config={"loop": "slots", **config})


@pytest.fixture(scope="module")
def reference(demo: Path) -> Iterator[GenAIModel]:
    with GenAIModel(demo) as model:
        yield model


def texts(responses: list[dict[str, Any]]) -> list[Any]:
    return [[c["message"]["content"] for c in r["choices"]] for r in responses]


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


COUNTRIES = ["Spain", "France", "Italy", "Japan", "Peru", "Chile", "Kenya", "Egypt", "Norway"]


def test_more_rows_than_slots_of_every_length(demo: Path, reference: GenAIModel) -> None:
    rows = [
        question(f"{'Please think. ' * (i % 5)}What is the capital of {c}?", max_tokens=1 + i % 9)
        for i, c in enumerate(COUNTRIES * 3)
    ]
    expected = texts(reference.run("llm/v1/chat", rows))
    for batch in (2, 3, 8):
        with slots(demo, max_batch_size=batch, prefix_cache=False) as model:
            assert texts(model.run("llm/v1/chat", rows)) == expected
    with slots(demo, max_batch_size=3) as model:
        assert texts(model.run("llm/v1/chat", rows)) == expected
        assert texts(model.run("llm/v1/chat", rows[::-1])) == expected[::-1]


def test_prompts_in_pieces(
    demo: Path, reference: GenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNK", 7)
    rows = [question(f"{'Please think of it. ' * 9}Capital of {c}?") for c in COUNTRIES]
    with slots(demo, max_batch_size=4, prefix_cache=False) as model:
        assert texts(model.run("llm/v1/chat", rows)) == texts(reference.run("llm/v1/chat", rows))


def test_a_late_request_joins_a_running_batch(demo: Path, reference: GenAIModel) -> None:
    story = reference.chat(STORY)["choices"][0]["message"]["content"]
    with slots(demo) as model:
        stream = model.stream_chat(STORY)
        begun = [next(stream) for _ in range(5)]
        short = model.chat(**question("What is the capital of Spain?"))
        assert texts([short]) == [["The capital of Spain is Madrid."]]
        chunks = begun + list(stream)
        told = "".join(
            choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
        )
        assert told == story


def test_a_second_turn_finds_the_first_in_the_cache(demo: Path, reference: GenAIModel) -> None:
    first = question("What is the capital of Spain?")["messages"]
    with slots(demo) as model:
        answer = model.chat(first)
        assert "prompt_tokens_details" not in answer["usage"]
        turns = [
            *first,
            answer["choices"][0]["message"],
            {"role": "user", "content": "And of France?"},
        ]
        again = model.chat(turns)
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        # All of the first turn but its answer's end, which was chosen and never computed.
        assert cached >= answer["usage"]["total_tokens"] - 2
        assert again["choices"] == reference.chat(turns)["choices"]
        chunks = list(model.stream_chat(turns, **COUNTED))
        assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > cached


def test_the_cache_can_be_turned_off(demo: Path) -> None:
    with slots(demo, prefix_cache=False) as model:
        for _ in range(2):
            assert "prompt_tokens_details" not in model.chat(STORY, max_tokens=2)["usage"]


def test_a_prefix_of_a_running_row_is_copied(demo: Path, reference: GenAIModel) -> None:
    system = {"role": "system", "content": "You are a helpful assistant. " * 8}
    rows = [[system, *question(f"What is the capital of {c}?")["messages"]] for c in COUNTRIES]
    expected = [reference.chat(row)["choices"] for row in rows]
    with slots(demo) as model, ThreadPoolExecutor(9) as pool:
        model.chat(rows[0], max_tokens=1)
        answers = list(pool.map(model.chat, rows))
        assert [answer["choices"] for answer in answers] == expected
        assert all(a["usage"]["prompt_tokens_details"]["cached_tokens"] > 30 for a in answers)


def test_memory_is_reserved_and_what_is_remembered_makes_room(demo: Path) -> None:
    with slots(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    with slots(demo, kv_cache_memory=per_token * 100, max_batch_size=4) as model:
        table = model._engine._loop._table  # type: ignore[attr-defined] - below every interface
        rows = [question(f"What is the capital of {c}?", max_tokens=30) for c in COUNTRIES]
        assert len(model.run("llm/v1/chat", rows)) == len(rows)
        assert sum(len(slot.tokens) for slot in table.slots) <= 100


@pytest.mark.parametrize(("reserved", "kept"), [(60, {400, 402}), (80, {400}), (81, set[int]())])
def test_what_was_used_longest_ago_is_forgotten_before_a_row_begins(
    demo: Path, reserved: int, kept: set[int]
) -> None:
    with slots(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    with slots(demo, kv_cache_memory=per_token * 100, max_batch_size=4) as model:
        table = model._engine._loop._table  # type: ignore[attr-defined] - below every interface
        for token in (400, 401, 402, 400):
            model.complete([token] * 20, max_tokens=1)
        stream = model.stream_complete([500] * 10, max_tokens=reserved - 10)
        next(stream)
        remembered = [slot.tokens.tolist() for slot in table.slots if len(slot)]
        assert sorted(tokens for tokens in remembered if tokens[0] != 500) == [
            [token] * 20 for token in sorted(kept)
        ]


def test_cancelling_a_prompt_stops_it_within_a_chunk(demo: Path) -> None:
    with slots(demo) as model:
        prompt = np.full(3000, 400, dtype=np.int32)
        begun = threading.Event()
        session = model._engine._loop._session  # type: ignore[attr-defined] - below every interface
        run = session.run

        def watched(*arguments: Any, **named: Any) -> Any:
            begun.set()
            return run(*arguments, **named)

        session.run = watched
        (ticket,) = submit(model, (prompt, 5, Options()))
        begun.wait(20)
        ticket.cancel()
        with pytest.raises(CancelledError):
            ticket.result()
        assert model.chat(STORY, max_tokens=2)["usage"]["completion_tokens"] == 2
        slot = next(
            s
            for s in model._engine._loop._table.slots  # type: ignore[attr-defined] - as above
            if not len(s.tokens) or s.tokens[0] == 400
        )
        assert len(slot.tokens) < 3000


@pytest.mark.parametrize("own", [True, False], ids=["its own", "another's"])
def test_a_cancel_stops_the_chunk_of_its_own_prompt_alone(
    demo: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    with slots(demo) as model:
        session = model._engine._loop._session._session  # type: ignore[attr-defined] - as above
        compute = session.run_with_iobinding
        begun, cancelled = threading.Event(), threading.Event()
        chunks: list[str] = []

        def held(binding: Any, options: Any) -> None:
            of_prompt = options is not None
            if of_prompt:
                begun.set()
                cancelled.wait(20)
                chunks.append("stopped")
            compute(binding, options)
            if of_prompt:
                chunks[-1] = "computed"

        monkeypatch.setattr(session, "run_with_iobinding", held)
        prompts = [np.full(30, token, dtype=np.int32) for token in (400, 401)]
        computed, waits = submit(model, *((prompt, 2, Options()) for prompt in prompts))
        assert begun.wait(20)
        left, other = (computed, waits) if own else (waits, computed)
        left.cancel()
        cancelled.set()
        with pytest.raises(CancelledError):
            left.result()
        assert other.result().tokens == 2
    assert chunks == (["stopped", "computed"] if own else ["computed"])


def test_which_models_qualify(demo: Path, tmp_path: Path) -> None:
    read = read_folder(demo)
    assert why_not_slots(read) is None
    for others in (-1, 1):
        counts = Counter(read.graph.operators)
        counts["GroupQueryAttention"] += others
        other = replace(read, graph=replace(read.graph, operators=counts))
        assert "another attention than GroupQueryAttention" in (why_not_slots(other) or "")
    folder = shutil.copytree(demo, tmp_path / "model")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert "execution provider" in (why_not_slots(read_folder(folder)) or "")
    with pytest.raises(InvalidRequestError, match="Use loop='genai'"):
        slots(folder)


@pytest.mark.parametrize(
    ("default", "setting", "expected"),
    [
        ("genai", None, "GenAILoop"),
        ("genai", "auto", "SlotsLoop"),
        ("auto", None, "SlotsLoop"),
        ("auto", "genai", "GenAILoop"),
    ],
)
def test_the_policy_chooses_the_loop_where_no_setting_does(
    demo: Path, default: LoopName, setting: str | None, expected: str
) -> None:
    policy = ServingPolicy(default_loop=default)
    with GenAIModel(demo, model_config={"loop": setting}, policy=policy) as model:
        assert type(model._engine._loop).__name__ == expected  # type: ignore[attr-defined] - as above
