"""Models of other families in onnxruntime-genai's loop: the answers are those of its own loop."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest

from mlflow_phi3_onnx import (
    GenAIModel,
    InvalidRequestError,
    MemoryBudgetError,
    UnsupportedParameterError,
    save_model,
)
from mlflow_phi3_onnx.engine.loops import prefill
from tests.support import tiny
from tests.support.raw_loop import RawLoop
from tests.support.versions import needs_new_genai

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FAMILIES: dict[str, Callable[[Path, Path], Path]] = {
    "growing": tiny.growing,
    "gpt2": tiny.gpt2,
    "convolution": tiny.convolution,
}
REWINDS = ("growing", "gpt2")
PAD = 2544
"""The demo model's pad id, which its end of a turn is not."""

RANDOM = np.random.default_rng(7)
PROMPTS = [RANDOM.integers(3, 2500, size).tolist() for size in (9, 1, 30, 4, 17, 2)]
MAX_TOKENS = 20


@pytest.fixture(
    scope="module",
    params=["growing", "gpt2", pytest.param("convolution", marks=needs_new_genai)],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[family](tmp_path_factory.mktemp("family") / family, demo)


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[GenAIModel]:
    with GenAIModel(folder) as model:
        yield model


@pytest.fixture(scope="module")
def raw(folder: Path) -> Callable[[list[int]], list[int]]:
    loop = RawLoop(folder)
    return lambda ids: loop.continued(ids, MAX_TOKENS)


@pytest.fixture(scope="module")
def expected(other: GenAIModel, raw: Callable[[list[int]], list[int]]) -> list[str]:
    return [spoken(other, raw(prompt)) for prompt in PROMPTS]


def spoken(model: GenAIModel, tokens: list[int]) -> str:
    """Write tokens as they stand behind a prompt."""
    detokenizer = model._tokenizer.detokenizer()
    return "".join(map(detokenizer.add, tokens)) + detokenizer.flush()


def texts(response: Any) -> list[str]:
    return [choice["text"] for choice in response["choices"]]


def test_alone(other: GenAIModel, raw: Callable[[list[int]], list[int]]) -> None:
    for prompt in PROMPTS:
        assert other.greedy_tokens(prompt, max_tokens=MAX_TOKENS) == raw(prompt)


def test_in_one_batch_of_unequal_lengths(other: GenAIModel, expected: list[str]) -> None:
    assert texts(other.complete(PROMPTS, max_tokens=MAX_TOKENS)) == expected


def test_with_choices_made_here(other: GenAIModel, expected: list[str]) -> None:
    biased = other.complete(PROMPTS, max_tokens=MAX_TOKENS, logit_bias={"5": 0})
    assert texts(biased) == expected
    for prompt, text in zip(PROMPTS, expected, strict=True):
        alone = other.complete(prompt, max_tokens=MAX_TOKENS, logit_bias={"5": 0})
        assert texts(alone) == [text]


def test_streamed_and_several_at_once(other: GenAIModel, expected: list[str]) -> None:
    for prompt, text in zip(PROMPTS[:3], expected, strict=False):
        chunks = list(other.stream_complete(prompt, max_tokens=MAX_TOKENS))
        assert "".join("".join(texts(chunk)) for chunk in chunks) == text
        assert texts(other.complete(prompt, n=3, max_tokens=MAX_TOKENS)) == [text] * 3


def test_rows_of_unequal_completions(other: GenAIModel, raw: Any) -> None:
    """Those that go on move to a smaller generator."""
    rows = [{"prompt": p, "max_tokens": 1 + 7 * (i % 3)} for i, p in enumerate(PROMPTS)]
    answers = other.run("llm/v1/completions", rows)
    assert [texts(answer) for answer in answers] == [
        [spoken(other, raw(row["prompt"])[: row["max_tokens"]])] for row in rows
    ]


def test_rows_that_would_not_fit_side_by_side(other: GenAIModel, raw: Any) -> None:
    """The longest prompt and the longest completion together are beyond the context."""
    rows = [
        {"prompt": (PROMPTS[2] * 8)[:235], "max_tokens": MAX_TOKENS},
        {"prompt": PROMPTS[0], "max_tokens": tiny.CONTEXT - len(PROMPTS[0])},
    ]
    together = other.run("llm/v1/completions", rows)
    assert texts(together[0]) == [spoken(other, raw(rows[0]["prompt"]))]
    assert texts(together[1]) == texts(other.run("llm/v1/completions", rows[1:])[0])


def test_a_cancelled_completion_leaves_the_others_as_they_are(
    other: GenAIModel, expected: list[str]
) -> None:
    for prompt, text in zip(PROMPTS, expected, strict=True):
        stream = other.stream_complete(prompt, max_tokens=MAX_TOKENS)
        next(stream)
        stream.close()
        assert texts(other.complete(prompt, max_tokens=MAX_TOKENS)) == [text]


def test_a_prefix_is_found_again_where_the_cache_can_be_taken_back(
    folder: Path, family: str, raw: Any
) -> None:
    story = PROMPTS[2]
    with GenAIModel(folder) as model:
        for sampled in ({}, {"logit_bias": {"5": 0}}):  # ended by the generator's choice, and ours
            first = model.complete(story, max_tokens=MAX_TOKENS, **sampled)
            longer = [*story, *raw(story), *PROMPTS[0]]
            for prompt in (longer, longer, longer[:25], story):
                again = model.complete(prompt, max_tokens=MAX_TOKENS, **sampled)
                assert texts(again) == [spoken(model, raw(prompt))]
                details = again["usage"].get("prompt_tokens_details")
                assert bool(details) == (family in REWINDS)
        assert first["usage"]["total_tokens"] == len(story) + MAX_TOKENS


def test_prompts_in_pieces(
    folder: Path, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "MAX_CHUNK", 5)
    with GenAIModel(folder, model_config={"max_batch_size": 1}) as model:
        assert texts(model.complete(PROMPTS, max_tokens=MAX_TOKENS)) == expected


def test_draft_tokens_are_verified_where_the_cache_can_be_taken_back(
    other: GenAIModel, family: str, raw: Any
) -> None:
    prompt = PROMPTS[0] * 3
    fields: dict[str, Any] = {"max_tokens": MAX_TOKENS, "prompt_lookup_num_tokens": 4}
    if family not in REWINDS:
        with pytest.raises(UnsupportedParameterError, match="cache cannot be taken back"):
            other.complete(prompt, **fields)
        return
    assert texts(other.complete(prompt, **fields)) == [spoken(other, raw(prompt))]


def test_a_prompt_that_ends_with_the_pad_id_is_not_cut(folder: Path, other: GenAIModel) -> None:
    """onnxruntime-genai's own loop takes it for padding, unless it has another pad id."""
    loop = RawLoop(folder, {"model": {"pad_token_id": PAD - 1}})
    prompts = [[*PROMPTS[0], PAD], PROMPTS[1], [*PROMPTS[3], PAD, PAD], PROMPTS[4]]
    wanted = [spoken(other, loop.continued(prompt, MAX_TOKENS)) for prompt in prompts]
    assert texts(other.complete(prompts, max_tokens=MAX_TOKENS)) == wanted
    for prompt, text in zip(prompts, wanted, strict=True):
        assert texts(other.complete(prompt, max_tokens=MAX_TOKENS)) == [text]
        whole = other.complete(prompt, max_tokens=1, echo=True, logprobs=0)
        assert len(whole["choices"][0]["logprobs"]["tokens"]) == len(prompt) + 1


def test_what_is_in_memory_twice_is_counted_twice(other: GenAIModel, family: str) -> None:
    attentions = 1 if family == "convolution" else tiny.LAYERS
    once = 2 * attentions * tiny.WIDTH * 4
    assert other.limits.kv_bytes_per_token == 2 * once


def test_what_is_kept_gives_way_where_memory_is_short(folder: Path, raw: Any) -> None:
    with GenAIModel(folder) as model:
        per_token = model.limits.kv_bytes_per_token
    most = len(PROMPTS[2]) + MAX_TOKENS
    with GenAIModel(folder, model_config={"kv_cache_memory": most * per_token}) as model:
        pool = model._engine._loop._pool  # type: ignore[attr-defined] - below every interface
        for prompt in (PROMPTS[0], PROMPTS[4], PROMPTS[2], PROMPTS[1], PROMPTS[0]):
            text = spoken(model, raw(prompt))
            assert texts(model.complete(prompt, max_tokens=MAX_TOKENS)) == [text]
            assert texts(model.complete([prompt, PROMPTS[1]], max_tokens=MAX_TOKENS))[0] == text
            assert sum(kept.kv_tokens for kept in pool._kept) <= most
        with pytest.raises(MemoryBudgetError, match=f"allows {most * per_token:,}"):
            model.complete([*PROMPTS[2], 5], max_tokens=MAX_TOKENS)


def test_what_is_saved_can_be_loaded(
    folder: Path, raw: Any, other: GenAIModel, tmp_path: Path
) -> None:
    save_model(folder, tmp_path / "saved", task="llm/v1/completions")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    (answer,) = loaded.predict({"prompt": "Madrid"}, params={"max_tokens": 8})
    assert texts(answer) == [spoken(other, raw(other.tokenize("Madrid"))[:8])]


def test_the_slots_loop_says_why_not(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="its KV cache grows by appending"):
        GenAIModel(folder, model_config={"loop": "slots"})
