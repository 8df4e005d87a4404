"""Models of other architectures, built here with random weights. Needs the ``export`` extra."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.raw_loop import RawLoop

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "onnx_ir")),
        reason="building a model needs the export extra",
    ),
]

LONG: dict[str, Any] = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 128,
    "sliding_window": None,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
}
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Phi3": {"sliding_window": 2047, "max_position_embeddings": 4096},
}


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = ["The capital of Spain is Madrid. And the capital of France is Paris."] * 9


def byte_level_tokenizer() -> Any:
    """Make a tokenizer of the kind that Qwen and Llama 3 have."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|end|>"])
    transformers: Any = importlib.import_module("transformers")
    return transformers.Qwen2TokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|endoftext|>"
    )


def build(kind: str, demo: Path, target: Path, **changes: Any) -> Path:
    """Build a tiny model of random weights, in full precision."""
    import torch
    import transformers

    if kind == "Qwen2":
        tokenizer = byte_level_tokenizer()
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
    config = getattr(transformers, f"{kind}Config")(
        **{**COMMON, **CONFIGS[kind], **changes},
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    torch.manual_seed(0)
    checkpoint = target / "checkpoint"
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]
    subprocess.run(
        [*command, "-i", checkpoint, "-o", target / "onnx", "-p", "fp32", "-e", "cpu"],
        check=True,
        cwd=target,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
    )
    return target / "onnx"


@pytest.fixture(scope="module", params=CONFIGS)
def built(
    request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return build(request.param, demo, tmp_path_factory.mktemp(request.param))


def test_rows_of_a_model_of_two_ranges_are_computed_alone(demo: Path, tmp_path: Path) -> None:
    # A long row beside it would give the short one the factors of the long range: other logits.
    folder = build("Phi3", demo, tmp_path, **LONG)
    rows: list[dict[str, Any]] = [
        {"prompt": "The capital of Spain is", "max_tokens": 3, "logprobs": 0},
        {"prompt": "And the capital " * 60, "max_tokens": 3, "logprobs": 0},
    ]

    def logprobs(answers: list[Any]) -> Any:
        return [answer["choices"][0]["logprobs"]["token_logprobs"] for answer in answers]

    with GenAIModel(folder) as model:
        together = model.run("llm/v1/completions", rows)
        assert together[1]["usage"]["prompt_tokens"] > LONG["original_max_position_embeddings"]
        alone = [model.run("llm/v1/completions", [row])[0] for row in rows]
    np.testing.assert_allclose(logprobs(together), logprobs(alone), atol=1e-5)
    first = LONG["original_max_position_embeddings"]
    assert read_folder(folder).graph.first_range == first
    raw = RawLoop(folder)
    sequence = list(range(5, first))
    with GenAIModel(folder) as model:
        crossing = model.greedy_tokens(sequence, max_tokens=12)
    for token in crossing:
        assert raw.continued(sequence, 1) == [token]
        sequence.append(token)
    assert len(sequence) > first + 1


PROMPTS = [f"{'The capital of Spain is Madrid. ' * i}And" for i in (0, 3, 1, 9, 5)]


def test_save_load_and_predict(built: Path, tmp_path: Path) -> None:
    mlflow_phi3_onnx.save_model(built, tmp_path / "saved", task="text-generation")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    window = {"window_size": 0, "slide_key_value_cache": False, "slide_inputs": False}
    raw = RawLoop(built, {"model": {"decoder": {"sliding_window": window}}})

    def expected(prompt: str) -> str:
        # Not the stream of onnxruntime-genai: random weights write broken characters, and it loses
        # what follows them.
        detokenizer = PromptTokenizer(built).detokenizer()
        text = "".join(detokenizer.add(token) for token in raw.tokens(prompt, 24))
        return text + detokenizer.flush()

    texts = [expected(prompt) for prompt in PROMPTS]
    params = {"max_tokens": 24}
    assert [loaded.predict({"prompt": p}, params=params)[0] for p in PROMPTS] == texts
    assert loaded.predict(pd.DataFrame({"prompt": PROMPTS}), params=params) == texts


def test_logprobs_are_those_of_transformers(built: Path) -> None:
    import torch
    import transformers

    checkpoint = transformers.AutoModelForCausalLM.from_pretrained(built.parent / "checkpoint")
    tokenizer = transformers.AutoTokenizer.from_pretrained(built.parent / "checkpoint")
    ids = tokenizer(PROMPTS[3], add_special_tokens=False, return_tensors="pt").input_ids
    expected: list[float] = []
    for _ in range(8):
        with torch.no_grad():
            logits = checkpoint(ids).logits[0, -1].double()
        best = torch.log_softmax(logits, dim=-1).max(dim=-1)
        expected.append(float(best.values))
        ids = torch.cat([ids, best.indices.reshape(1, 1)], dim=1)
    with GenAIModel(built) as model:
        choice = model.complete(PROMPTS[3], max_tokens=8, logprobs=0)["choices"][0]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=1e-4)


@pytest.mark.parametrize("messages", [2, 5])
def test_the_chat_template_renders_as_transformers_renders_it(demo: Path, messages: int) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(demo)
    roles = ["system", "user", "assistant", "user", "assistant"][:messages]
    chat = [{"role": role, "content": f"Naïve 你好 {role}"} for role in roles]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert PromptTokenizer(demo).encode_chat(ChatPrompt(tuple(chat))).tolist() == expected
