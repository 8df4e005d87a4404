"""Models of random weights, whose choices are near ties: what may differ in a batch, and how much.

Needs the ``export`` extra, which builds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.models import can_build, model_folder
from mlflow_phi3_onnx import GenAIModel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(not can_build(), reason="building a model needs the export extra"),
]

TOLERANCE = {"tiny-fp32": 1e-4, "tiny-int4": 1e-3}
"""How far the log-probabilities of one token may be apart, alone and in a batch of eight.

A quantized matrix product of several rows rounds activations otherwise than one of a single row.
"""

QUESTION = [{"role": "user", "content": "Tell me something about the sea."}]
# Every answer is held to a text, so that all compute the same tokens whatever is likeliest.
TEXT = "the sea is deep and wide"
HELD: dict[str, Any] = {"choice": [TEXT], "logprobs": True, "max_tokens": 40}
MATES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Please wait. " * i}], "max_tokens": 3 + 5 * i}
    for i in range(7)
]


@pytest.fixture(scope="module", params=TOLERANCE)
def weights(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def models(weights: str) -> Iterator[dict[str, GenAIModel]]:
    folder = model_folder(weights)
    loaded = {loop: GenAIModel(folder, model_config={"loop": loop}) for loop in ("genai", "slots")}
    yield loaded
    for model in loaded.values():
        model.close()


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"]]


def test_log_probabilities_are_close_in_both_loops_alone_and_beside_seven(
    models: dict[str, GenAIModel], weights: str
) -> None:
    row: dict[str, Any] = {"messages": QUESTION, **HELD}
    expected = logprobs(models["genai"].chat(**row))
    assert len(expected) > 5
    for model in models.values():
        alone = model.chat(**row)
        beside = model.run("llm/v1/chat", [*MATES[:4], row, *MATES[4:]])[4]
        for answer in (alone, beside):
            assert answer["choices"][0]["message"]["content"] == TEXT
            assert logprobs(answer) == pytest.approx(expected, abs=TOLERANCE[weights])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "seeded"])
def test_exact_weights_give_the_same_text_everywhere(options: dict[str, Any]) -> None:
    rows = [{"messages": QUESTION, "max_tokens": 24, **options}, *MATES]
    texts: list[list[str]] = []
    for loop in ("genai", "slots"):
        with GenAIModel(model_folder("tiny-fp32"), model_config={"loop": loop}) as model:
            together = model.run("llm/v1/chat", rows)
            alone = [model.run("llm/v1/chat", [row])[0] for row in rows]
        texts += [[a["choices"][0]["message"]["content"] for a in got] for got in (together, alone)]
    assert texts == [texts[0]] * 4
