"""Greedy text is the same through every door, alone and in one batch, and in a raw loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel
from tests.support.raw_loop import RawLoop

if TYPE_CHECKING:
    from pathlib import Path

MAX_TOKENS = 48

COUNTRIES = [
    *("Spain", "France", "Italy", "Japan", "Germany", "Portugal", "Greece", "Norway", "Sweden"),
    *("Finland", "Poland", "Austria", "Ireland", "Egypt", "Kenya", "Peru", "Chile", "Canada"),
    *("Brazil", "Cuba"),
]

PROMPTS = [
    *(f"What is the capital of {country}?" for country in COUNTRIES),
    *(f"{'Please think of it. ' * i}Tell me the capital of {c}." for i, c in enumerate(COUNTRIES)),
    "Who are you?",
    "Tell me a joke about atom",
    "Count from 1 to 20",
    "Say hello in Chinese.",
    "Show me some emoji.",
    "Tell me a long story.",
    "x",
    "¿Qué? – naïve café 你好 😀",
    "a  b   c    d\n\n\te",
    "Give me a JSON object with the country and capital of Spain.",
]


def chat_prompt(question: str) -> str:
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def reference(demo: Path) -> list[str]:
    raw = RawLoop(demo)
    prompts = [chat_prompt(question) for question in PROMPTS]
    rendered = [raw.render([{"role": "user", "content": question}]) for question in PROMPTS]
    assert rendered == prompts
    return [raw(prompt, MAX_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module")
def answers(reference: list[str]) -> list[str]:
    """The same as answers, which do not begin with the space that the vocabulary writes."""
    assert all(text.startswith(" ") for text in reference)
    return [text[1:] for text in reference]


@pytest.fixture(scope="module")
def chats() -> list[list[dict[str, Any]]]:
    return [[{"role": "user", "content": question}] for question in PROMPTS]


def content(response: dict[str, Any]) -> str:
    return response["choices"][0]["message"]["content"]


def streamed(chunks: Any) -> str:
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
    )


def test_there_are_fifty_prompts_of_different_lengths(reference: list[str]) -> None:
    assert len(PROMPTS) == 50
    assert len({len(prompt) for prompt in PROMPTS}) > 30
    assert len(set(reference)) > 20


def test_native_alone(model: GenAIModel, chats: Any, answers: list[str]) -> None:
    assert [content(model.chat(c, max_tokens=MAX_TOKENS)) for c in chats] == answers


def test_native_text_in_one_batch(model: GenAIModel, reference: list[str]) -> None:
    prompts = [chat_prompt(question) for question in PROMPTS]
    assert model.generate(prompts, max_tokens=MAX_TOKENS) == reference


def test_native_stream(model: GenAIModel, chats: Any, answers: list[str]) -> None:
    streams = [streamed(model.stream_chat(c, max_tokens=MAX_TOKENS)) for c in chats]
    assert streams == answers


def test_with_choices_made_here_instead_of_by_the_generator(
    model: GenAIModel, chats: Any, answers: list[str]
) -> None:
    # A bias of nothing leaves every logit as it is, but takes the path of sampled rows.
    biased = [content(model.chat(c, max_tokens=MAX_TOKENS, logit_bias={"5": 0})) for c in chats]
    assert biased == answers


@pytest.mark.usefixtures("tracking")
def test_pyfunc_alone_in_one_batch_and_streamed(
    demo: Path, loop: str, chats: Any, answers: list[str]
) -> None:
    config = {"max_tokens": MAX_TOKENS, "loop": loop}
    info = mlflow_phi3_onnx.log_model(demo, name="demo", model_config=config)
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    alone = [content(loaded.predict({"messages": c})[0]) for c in chats]
    assert alone == answers
    together = loaded.predict(pd.DataFrame({"messages": chats}))
    assert [content(response) for response in together] == answers
    assert [streamed(loaded.predict_stream({"messages": c})) for c in chats] == answers
