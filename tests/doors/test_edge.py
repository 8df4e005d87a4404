"""The engine's edge: all of a request crosses it, and no text does; a stop sequence cancels."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.core.request import Options, Sampling
from mlflow_phi3_onnx.engine.sequence.processors import build
from tests.support.doors import (
    COUNTED,
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
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def apart(demo: Path, loop: str) -> Iterator[GenAIModel]:
    """A model whose engine is in another process, so that everything crosses the edge."""
    with GenAIModel(demo, model_config={"loop": loop, "isolation": "worker"}) as loaded:
        yield loaded


def every_way(model: GenAIModel, fields: dict[str, Any]) -> list[Answer]:
    return [
        whole_chat(model.chat(**fields)),
        chat_pieces(model.stream_chat(**COUNTED | fields)),
        whole_chat(asyncio.run(model.achat(**fields))),
        chat_pieces(gathered(model.astream_chat(**COUNTED | fields))),
    ]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_the_answers_of_a_worker_are_those_of_this_process(apart: GenAIModel, case: Good) -> None:
    for answer in every_way(apart, {"messages": SPAIN, **case.fields}):
        check_good(answer, case)


@pytest.mark.parametrize("number", range(len(SAME)))
def test_what_reports_crosses_it_too(
    apart: GenAIModel, references: list[Answer], number: int
) -> None:
    for answer in every_way(apart, {**SAME[number], **REPORTED}):
        check_same(answer, references[number])


def test_scores_and_completions_cross_it_too(apart: GenAIModel, model: GenAIModel) -> None:
    text = "The capital of Spain is Madrid."
    ids = apart.tokenize(text)
    for scored in (text, ids):
        assert apart.perplexity(scored) == pytest.approx(model.perplexity(scored), rel=0.05)
    scores, expected = (m.token_logprobs(text, top_logprobs=3) for m in (apart, model))
    assert [score["token"] for score in scores] == [score["token"] for score in expected]
    assert [len(score["top_logprobs"]) for score in scores] == [0, *[3] * (len(ids) - 1)]
    assert apart.greedy_tokens(ids[:4], 8) == model.greedy_tokens(ids[:4], 8)
    asked: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 0}
    whole, inline = (m.complete([text, "Madrid"], **asked)["choices"] for m in (apart, model))
    assert [choice["text"] for choice in whole] == [choice["text"] for choice in inline]


def test_eight_threads_and_a_frame_of_rows_get_what_each_gets_alone(
    apart: GenAIModel, references: list[Answer]
) -> None:
    def ask(number: int) -> Answer:
        fields = {**SAME[number % len(SAME)], **REPORTED}
        return (
            chat_pieces(apart.stream_chat(**COUNTED | fields))
            if number % 2
            else whole_chat(apart.chat(**fields))
        )

    with ThreadPoolExecutor(8) as pool:
        for number, answer in enumerate(pool.map(ask, range(3 * len(SAME)))):
            check_same(answer, references[number % len(SAME)])
    rows = apart.run("llm/v1/chat", [{**fields, **REPORTED} for fields in SAME])
    for row, reference in zip(rows, references, strict=True):
        check_same(whole_chat(row), reference)


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
