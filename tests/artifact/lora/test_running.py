"""Adapters at work: who answers, beside whom, and what is remembered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.models import can_build, model_folder
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from tests.support.adapted import (
    LAYERS,
    Delta,
    baked,
    merged,
    open_for_adapters,
    parameters,
    random_deltas,
    write_adapter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTIONS = [
    "What is the capital of Spain?",
    "What is the capital of Peru?",
    "Who are you?",
    "zzz qqq",
    "Please think of it. " * 12 + "What is the capital of Italy?",
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.3, "seed": 5},
    {"prompt_lookup_num_tokens": 4},
    {"regex": "[a-z ]{4,20}"},
]
NAMES = (None, "warm", "cold")


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 12, **fields}


def answered(answer: dict[str, Any]) -> tuple[str, list[str]]:
    """Who answered, and what."""
    return answer["model"], [choice["message"]["content"] for choice in answer["choices"]]


def cached(answer: dict[str, Any]) -> int:
    return answer["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)


def likelihoods(model: GenAIModel, adapter: str | None = None) -> list[float]:
    """The log-probabilities of a text's tokens, but for the first."""
    scored: dict[str, Any] = {"prompt": QUESTIONS[-1], "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = model.complete(**scored, adapter=adapter)["choices"]
    return choice["logprobs"]["token_logprobs"][1:]


ROWS = [
    asked(question, adapter=NAMES[(place + turn) % 3], **options)
    for turn, options in enumerate(OPTIONS)
    for place, question in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module")
def adapted(folder: Path, files: dict[str, Path]) -> Iterator[GenAIModel]:
    with GenAIModel(folder, adapters=files) as model:
        yield model


@pytest.fixture(scope="module")
def alone(folder: Path, files: dict[str, Path]) -> Iterator[GenAIModel]:
    """One row at a time, in generators that were never used before."""
    settings = {"max_batch_size": 1, "prefix_cache": False}
    with GenAIModel(folder, adapters=files, model_config=settings) as model:
        yield model


@pytest.fixture(scope="module")
def expected(alone: GenAIModel) -> list[Any]:
    return [answered(alone.run("llm/v1/chat", [row])[0]) for row in ROWS]


def test_the_model_tells_its_adapters(adapted: GenAIModel, demo: Path) -> None:
    assert adapted.adapters == ("warm", "cold")
    with GenAIModel(demo) as plain:
        assert plain.adapters == ()


def test_without_an_adapter_the_model_answers_as_it_is(adapted: GenAIModel, demo: Path) -> None:
    rows = [asked(text, **options) for text in QUESTIONS for options in OPTIONS]
    with GenAIModel(demo) as plain:
        for row in rows:
            assert answered(adapted.chat(**row)) == answered(plain.chat(**row))
    assert answered(adapted.chat(**rows[0])) == ("phi3", ["The capital of Spain is Madrid."])


@pytest.mark.parametrize("name", ["warm", "cold"])
def test_an_adapter_answers_as_a_model_that_it_is_built_into(
    adapted: GenAIModel,
    demo: Path,
    deltas: dict[str, dict[str, Delta]],
    tmp_path: Path,
    name: str,
) -> None:
    # Another graph rounds otherwise, and a draw from near-equal logits shows it.
    surest = [options for options in OPTIONS if "temperature" not in options]
    rows = [asked(text, **options) for text in QUESTIONS for options in surest]
    base = [answered(adapted.chat(**row))[1] for row in rows]
    with GenAIModel(baked(demo, tmp_path / "model", deltas[name])) as reference:
        wanted = [answered(reference.chat(**row))[1] for row in rows]
    assert [answered(adapted.chat(adapter=name, **row)) for row in rows] == [
        (name, text) for text in wanted
    ]
    assert base != wanted


@pytest.mark.export
@pytest.mark.skipif(not can_build(), reason="building a model needs the export extra")
def test_an_adapter_answers_as_a_model_that_it_is_merged_into(tmp_path: Path) -> None:
    source = model_folder("tiny-fp32")
    deltas = random_deltas(source, 3, size=0.3)
    file = write_adapter(tmp_path / "x.onnx_adapter", parameters(deltas))
    rows = [asked(text, max_tokens=32) for text in QUESTIONS]
    with GenAIModel(merged(source, tmp_path / "merged", deltas)) as reference:
        wanted = [answered(answer)[1] for answer in reference.run("llm/v1/chat", rows)]
    folder = open_for_adapters(source, tmp_path / "open")
    with GenAIModel(folder, adapters={"x": file}) as model:
        base = [answered(answer)[1] for answer in model.run("llm/v1/chat", rows)]
        answers = model.run("llm/v1/chat", rows, {"adapter": "x"})
    assert [answered(answer) for answer in answers] == [("x", text) for text in wanted]
    assert all(one != other for one, other in zip(base, wanted, strict=True))


@pytest.mark.parametrize("isolation", ["worker", "shared"])
def test_rows_of_every_adapter_answer_the_same_in_another_process(
    folder: Path, files: dict[str, Path], expected: list[Any], isolation: str
) -> None:
    settings = {"max_batch_size": 1, "prefix_cache": False, "isolation": isolation}
    with GenAIModel(folder, adapters=files, model_config=settings) as model:
        assert model.adapters == ("warm", "cold")
        assert [answered(answer) for answer in model.run("llm/v1/chat", ROWS)] == expected
        stream = model.stream_chat(**asked(QUESTIONS[0], adapter="warm"))
        said = [chunk["choices"][0]["delta"].get("content", "") for chunk in stream]
        whole = model.chat(**asked(QUESTIONS[0], adapter="warm"))
        assert answered(whole) == ("warm", ["".join(said)])
        with pytest.raises(InvalidRequestError, match="adapter must be one of warm, cold"):
            model.chat(**asked(QUESTIONS[0], adapter="hot"))


@pytest.mark.parametrize("batch", [2, 5, 32])
def test_rows_of_every_adapter_together_answer_as_each_alone(
    folder: Path, files: dict[str, Path], expected: list[Any], batch: int
) -> None:
    settings = {"max_batch_size": batch}
    with GenAIModel(folder, adapters=files, model_config=settings) as model:
        for rows, wanted in ((ROWS, expected), (ROWS[::-1], expected[::-1])):
            assert [answered(answer) for answer in model.run("llm/v1/chat", rows)] == wanted


def test_callers_of_every_adapter_at_once_answer_as_each_alone(
    adapted: GenAIModel, expected: list[Any]
) -> None:
    async def all_at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*(adapted.achat(**row) for row in ROWS))

    assert [answered(answer) for answer in asyncio.run(all_at_once())] == expected


def test_what_one_has_computed_is_never_found_again_by_another(
    folder: Path, files: dict[str, Path], alone: GenAIModel
) -> None:
    row = asked(QUESTIONS[-1])
    with GenAIModel(folder, adapters=files) as model:
        for name in NAMES:
            answer = model.chat(**row, adapter=name)
            assert cached(answer) == 0
            assert answered(answer) == answered(alone.chat(**row, adapter=name))
        for name in NAMES:
            answer = model.chat(**row, adapter=name)
            assert cached(answer) > 30
            assert answered(answer) == answered(alone.chat(**row, adapter=name))


def test_more_adapters_than_generators_are_kept(folder: Path, tmp_path: Path, demo: Path) -> None:
    files = {
        f"a{seed}": write_adapter(
            tmp_path / f"{seed}.onnx_adapter", parameters(random_deltas(demo, seed, rank=seed + 1))
        )
        for seed in range(7)
    }
    with GenAIModel(folder, adapters=files) as model:
        first = [answered(model.chat(**asked(QUESTIONS[0]), adapter=name)) for name in files]
        again = [answered(model.chat(**asked(QUESTIONS[0]), adapter=name)) for name in files]
    assert first == again
    assert len({text for _, (text,) in first}) > 4


def test_the_field_model_chooses_an_adapter(adapted: GenAIModel, expected: list[Any]) -> None:
    row = asked(QUESTIONS[0])
    warm = answered(adapted.chat(**row, adapter="warm"))
    assert warm[0] == "warm"
    assert answered(adapted.chat(**row, model="warm")) == warm
    assert answered(adapted.chat(**row, model="warm", adapter="warm")) == warm
    assert answered(adapted.chat(**row, model="gpt-4", adapter="warm")) == warm
    assert answered(adapted.chat(**row, model="phi3")) == expected[0]
    with pytest.raises(InvalidRequestError, match="model must be phi3, the model itself, or one"):
        adapted.chat(**row, model="gpt-4")
    assert answered(adapted.run("llm/v1/chat", [row], {"adapter": "warm"})[0]) == warm


def test_every_chunk_names_the_adapter(adapted: GenAIModel) -> None:
    row = asked(QUESTIONS[0], adapter="cold")
    chunks = list(adapted.stream_chat(**row))
    assert {chunk["model"] for chunk in chunks} == {"cold"}
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert [text] == answered(adapted.chat(**row))[1]


def test_completions_and_plain_text_take_an_adapter(adapted: GenAIModel) -> None:
    prompts = [f"{question} " for question in QUESTIONS]
    fields: dict[str, Any] = {"adapter": "cold", "max_tokens": 8}
    answer = adapted.complete(prompts, **fields)
    texts = adapted.generate(prompts, **fields)
    assert answer["model"] == "cold"
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert texts != adapted.generate(prompts, max_tokens=8)


def test_an_adapter_changes_what_is_likely(adapted: GenAIModel) -> None:
    plain, warm, cold = (likelihoods(adapted, name) for name in NAMES)
    assert np.isfinite([plain, warm, cold]).all()
    assert plain != warm != cold != plain


def test_a_name_that_no_adapter_has(adapted: GenAIModel, demo: Path) -> None:
    with pytest.raises(InvalidRequestError, match="must be one of warm, cold; got another") as one:
        adapted.chat(**asked("Hello", adapter="canary"))
    assert one.value.param == "adapter"
    assert one.value.status == 400
    assert "canary" not in one.value.message
    with pytest.raises(InvalidRequestError, match="one of the model's adapters; got 5"):
        adapted.chat(**asked("Hello", adapter=5))
    with GenAIModel(demo) as plain, pytest.raises(InvalidRequestError, match="this model has none"):
        plain.chat(**asked("Hello", adapter="warm"))


def test_two_adapters_for_one_answer(adapted: GenAIModel) -> None:
    with pytest.raises(InvalidRequestError, match="model is cold and adapter is warm") as caught:
        adapted.chat(**asked("Hello", model="cold", adapter="warm"))
    assert caught.value.param == "model"


def test_the_slots_loop_says_why_it_cannot(folder: Path, files: dict[str, Path]) -> None:
    with pytest.raises(InvalidRequestError, match="its graph has inputs for adapters") as caught:
        GenAIModel(folder, adapters=files, model_config={"loop": "slots"})
    assert caught.value.param == "loop"


def test_where_the_loop_is_chosen_the_genai_loop_is(
    folder: Path, files: dict[str, Path], expected: list[Any]
) -> None:
    with GenAIModel(folder, adapters=files, model_config={"loop": "auto"}) as model:
        assert [answered(answer) for answer in model.run("llm/v1/chat", ROWS)] == expected


def test_the_rank_may_be_fixed(demo: Path, tmp_path: Path, deltas: Any) -> None:
    folder = open_for_adapters(demo, tmp_path / "model", LAYERS, rank=4)
    file = write_adapter(tmp_path / "x.onnx_adapter", parameters(deltas["warm"]))
    with GenAIModel(folder, adapters={"x": file}) as model, GenAIModel(demo) as plain:
        row = asked(QUESTIONS[0])
        assert answered(model.chat(**row)) == answered(plain.chat(**row))
        assert answered(model.chat(**row, adapter="x"))[1] != answered(plain.chat(**row))[1]


@pytest.mark.parametrize(
    ("ranks", "fixed"),
    [((0, 4), None), ((4, 0), None), ((2, 5), None), ((0, 4), 4), ((4, 0), 4)],
)
def test_an_adapter_of_some_of_the_layers_or_of_several_ranks(
    demo: Path, tmp_path: Path, ranks: tuple[int, int], fixed: int | None
) -> None:
    """Where the graph has one name for all ranks, ONNX Runtime takes them for one number."""
    some = {
        layer: random_deltas(demo, 0, rank=rank)[layer]
        for layer, rank in zip(LAYERS, ranks, strict=True)
        if rank
    }
    folder = open_for_adapters(demo, tmp_path / "open", rank=fixed)
    file = write_adapter(tmp_path / "x.onnx_adapter", parameters(some))
    with GenAIModel(baked(demo, tmp_path / "baked", some)) as reference:
        wanted = likelihoods(reference)
    with GenAIModel(folder, adapters={"x": file}) as model:
        assert likelihoods(model, "x") == pytest.approx(wanted, abs=0.1)
        assert likelihoods(model) != pytest.approx(wanted, abs=1)
