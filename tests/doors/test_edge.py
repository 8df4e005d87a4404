"""The engine's edge: what crosses it pickles, and no text does; a stop sequence cancels."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from mlflow_phi3_onnx.core.request import Options, Sampling
from mlflow_phi3_onnx.engine.sequence.processors import build
from tests.support.doors import (
    REPORTED,
    SPAIN,
    Answer,
    chat_pieces,
    check_same,
    gathered,
    whole_chat,
)
from tests.support.engines import ScriptedLoop, engine, job
from tests.support.table import GOOD, SAME, Good, check_good

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx import GenAIModel
    from mlflow_phi3_onnx.engine.base import Deliver, Engine, Job, JobHandle, TokenDelta
    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

_T = TypeVar("_T")


def pickled(value: _T) -> _T:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - it has just been made


class PicklingEngine:
    """An engine to and from which everything goes through pickle."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.kv_tokens = engine.kv_tokens
        self.close = engine.close

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Sequence[JobHandle]:
        def through(position: int, delta: TokenDelta | GenAIError) -> bool:
            return deliver(position, pickled(delta))

        return self.engine.submit(pickled(jobs), through)


@pytest.fixture
def pickling(model: GenAIModel, monkeypatch: pytest.MonkeyPatch) -> GenAIModel:
    monkeypatch.setattr(model._texts, "_engine", PicklingEngine(model._engine))
    return model


def every_way(model: GenAIModel, fields: dict[str, Any]) -> list[Answer]:
    return [
        whole_chat(model.chat(**fields)),
        chat_pieces(model.stream_chat(**fields)),
        whole_chat(asyncio.run(model.achat(**fields))),
        chat_pieces(gathered(model.astream_chat(**fields))),
    ]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_what_crosses_the_edge_pickles(pickling: GenAIModel, case: Good) -> None:
    for answer in every_way(pickling, {"messages": SPAIN, **case.fields}):
        check_good(answer, case)


@pytest.mark.parametrize("number", range(len(SAME)))
def test_what_reports_crosses_it_too(
    pickling: GenAIModel, references: list[Answer], number: int
) -> None:
    for answer in every_way(pickling, {**SAME[number], **REPORTED}):
        check_same(answer, references[number])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_cancels_and_nothing_after_it_shows(
    tokenizer: PromptTokenizer, stream: bool
) -> None:
    loop = ScriptedLoop(int(tokenizer.encode("a")[-1]))
    running = engine(loop, tokenizer)
    stopped = replace(job(max_tokens=4000), options=Options(stop=("a a a",)))
    if stream:
        deltas = list(running.deltas(stopped))
        text, last = "".join(delta.text for delta in deltas), deltas[-1]
    else:
        last = running.submit([stopped])[0].result()
        text = last.text
    assert (text.strip(), last.tokens, last.finish_reason) == ("", 3, "stop")
    assert len(last.token_ids) == 3
    running.submit([job(max_tokens=1)])[0].result()
    assert loop.steps < 4000
    running.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 1.1),
        ("presence_penalty", 0.1),
        ("frequency_penalty", 0.1),
        ("logit_bias", {5: 1.0}),
        ("no_repeat_ngram_size", 3),
    ],
)
def test_every_option_that_moves_the_argmax_leaves_the_greedy_fast_path(
    option: str, value: Any
) -> None:
    prompt = job(length=4).prompt
    (processor,) = build(Sampling(**{option: value}), prompt, 100)
    assert processor.changes_argmax([1, 2, 3])
    (fewest,) = build(Sampling(), prompt, 100, eos=frozenset({0}), min_tokens=2)
    assert fewest.changes_argmax([1])
    assert not fewest.changes_argmax([1, 2])
    assert build(Sampling(temperature=1.5, top_k=3, top_p=0.5, min_p=0.1), prompt, 100) == ()
