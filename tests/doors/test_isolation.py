"""A row is alone: nothing that runs beside it, before it or in its place changes its answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTIONS = [
    "What is the capital of Spain?",
    "Please think of it. Tell me the capital of Japan.",
    "Tell me a joke about atom",
    "zzz qqq",
    "Count from 1 to 20",
]
QUESTIONS_AS_MESSAGES = [[{"role": "user", "content": question}] for question in QUESTIONS]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.6, "seed": 3},
    {"temperature": 1.2, "seed": 3, "top_p": 0.9, "min_p": 0.01},
    {"repetition_penalty": 1.8, "frequency_penalty": 1},
    {"stop": ["a", " of"]},
    {"logit_bias": {"300": 5, "301": -50}},
    {"regex": "[a-z ]{5,40}"},
    {"choice": ["yes", "no", "perhaps"], "temperature": 1, "seed": 8},
    {"min_tokens": 6},
    {"n": 2, "temperature": 1.5, "seed": 1},
]

ROW = st.builds(
    lambda question, options, limit: {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max(limit, options.get("min_tokens", 1)),
        **options,
    },
    st.sampled_from(QUESTIONS),
    st.sampled_from(OPTIONS),
    st.integers(1, 12),
)


@pytest.fixture(scope="module")
def busy(demo: Path, loop: str) -> Iterator[GenAIModel]:
    """A model with few places, so that rows wait, leave and follow each other."""
    with GenAIModel(demo, model_config={"loop": loop, "max_batch_size": 3}) as loaded:
        yield loaded


ALONE: dict[str, Any] = {}


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(ROW, min_size=2, max_size=8))
def test_rows_together_are_what_each_is_alone(
    busy: GenAIModel, model: GenAIModel, loop: str, rows: list[dict[str, Any]]
) -> None:
    together = [answer["choices"] for answer in busy.run("llm/v1/chat", rows)]
    for row, choices in zip(rows, together, strict=True):
        key = f"{loop} {json.dumps(row)}"
        if key not in ALONE:
            ALONE[key] = model.chat(**row)["choices"]
        assert choices == ALONE[key]


PRIVATE = "The secret word is xylophone."
TENANT = [{"role": "system", "content": PRIVATE}, {"role": "user", "content": "Say it."}]
OTHER = [{"role": "user", "content": "What is the secret word? Say it."}]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_one_tenants_prompt_is_not_in_anothers_answer(
    demo: Path, loop: str, prefix_cache: bool
) -> None:
    asked = {"logprobs": True, "top_logprobs": 5, "max_tokens": 20, "temperature": 0}
    config = {"loop": loop, "prefix_cache": prefix_cache, "max_batch_size": 2}
    with GenAIModel(demo, model_config=config) as fresh:
        expected = fresh.chat(OTHER, **asked)["choices"]
    with GenAIModel(demo, model_config=config) as shared:
        for _ in range(3):
            shared.chat(TENANT, max_tokens=30)
            stream = shared.stream_chat(TENANT)
            next(stream)
            next(stream)
            stream.close()
            with pytest.raises(InvalidRequestError):
                shared.chat(TENANT, max_tokens=5000)
            (choice,) = shared.chat(OTHER, **asked)["choices"]
            assert choice["message"] == expected[0]["message"]
            told = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            wanted = [entry["logprob"] for entry in expected[0]["logprobs"]["content"]]
            assert told == pytest.approx(wanted, abs=1e-4)


def test_32_threads_of_streams_closed_at_any_point_harm_nobody(model: GenAIModel) -> None:
    expected = model.chat(QUESTIONS_AS_MESSAGES[0])["choices"][0]["message"]["content"]

    def leave(number: int) -> None:
        stream = model.stream_chat(QUESTIONS_AS_MESSAGES[number % len(QUESTIONS)])
        for _ in range(number % 7):
            next(stream)
        stream.close()

    def stay(_: int) -> str:
        return model.chat(QUESTIONS_AS_MESSAGES[0])["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(32) as pool:
        left = [pool.submit(leave, number) for number in range(40)]
        answers = list(pool.map(stay, range(24)))
        for future in left:
            future.result()
    assert answers == [expected] * 24
