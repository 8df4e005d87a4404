"""The benchmarks' own parts: their models are what they say, and every measure runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.models import VOCABULARY, can_build, model_folder
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from pathlib import Path

needs_builder = pytest.mark.skipif(
    not can_build(), reason="building a model needs the export extra"
)


@pytest.fixture(scope="module", params=["tiny-fp32", "tiny-int4"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return model_folder(request.param)


@pytest.mark.export
@needs_builder
def test_answers_of_built_models_are_as_long_as_asked(tiny: Path, loop: str) -> None:
    with GenAIModel(tiny, model_config={"loop": loop}) as model:
        assert model.limits.vocab_size == VOCABULARY
        sampled: dict[str, Any] = {"temperature": 1.0, "seed": 1}
        for options in ({}, sampled):
            choice = model.complete("The capital of Spain is", max_tokens=200, **options)
            assert choice["usage"]["completion_tokens"] == 200
            assert len(set(choice["choices"][0]["text"].split())) > 20


@pytest.mark.export
@needs_builder
def test_prompts_of_built_models_are_those_of_the_demo_model(tiny: Path, demo: Path) -> None:
    wide, narrow = PromptTokenizer(tiny), PromptTokenizer(demo)
    for text in ("The capital of Spain is Madrid.", "¿Qué? 你好 😀"):
        ids = wide.encode(text).tolist()
        assert ids == narrow.encode(text).tolist()
        assert wide.decode(ids) == narrow.decode(ids)
    assert wide.encode("<|end|>").tolist() == [VOCABULARY - 9]
