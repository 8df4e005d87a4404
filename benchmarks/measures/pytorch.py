"""Decoding, against MLflow's own flavor for the same weights in PyTorch."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from benchmarks.models import MODELS, checkpoint_folder
from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import LOOPS, Scale, Subject, tokens_of
from benchmarks.timing import timed
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["decoding"]

PROMPT_TOKENS = 32
ANSWER_TOKENS = 33
REPEATS = 3


def decoding(scale: Scale) -> Iterator[Row]:
    """Compare tokens per second after the first one, of one request.

    The time of an answer of one token is taken from that of a longer one.
    """
    names = scale.pick(scale.models, ("tiny-int4",))
    checkpoint = checkpoint_folder(MODELS[names[0]].checkpoint)
    with tempfile.TemporaryDirectory() as work:
        theirs = _load_theirs(checkpoint, Path(work) / "model")
        for name in names:
            subject = Subject(name)
            with subject.pyfuncs("llm/v1/completions") as pyfuncs:
                models = {**pyfuncs, "transformers": theirs}
                sides = {side: partial(_decode, scale, subject, models[side]) for side in models}
                # torch's threads spin on for a while when they have nothing to do.
                results = interleaved(sides, scale.pick(REPEATS, 1), pause=0.3)
            for loop in LOOPS:
                yield ratio_row(
                    "transformers",
                    f"`{loop}`, {subject.name}",
                    Side("decoding", "tokens/s", results[loop]),
                    Side("mlflow.transformers, bf16", "tokens/s", results["transformers"]),
                )


def _load_theirs(checkpoint: Path, target: Path) -> Any:
    import torch
    from mlflow.transformers import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {
            "model": AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16),
            "tokenizer": AutoTokenizer.from_pretrained(checkpoint),
        }
        save_model(
            parts,
            path=str(target),
            task="llm/v1/completions",
            torch_dtype=torch.bfloat16,
            pip_requirements=["mlflow"],
        )
        del parts
        return mlflow.pyfunc.load_model(str(target))


def _decode(scale: Scale, subject: Subject, model: Any, turn: int) -> float:
    count = scale.pick(ANSWER_TOKENS, 5)
    prompt = subject.prompts.text(PROMPT_TOKENS, "decode", turn)
    other = subject.prompts.text(PROMPT_TOKENS, "decode one", turn)
    answers: list[Any] = []
    whole = timed(lambda: answers.extend(model.predict({"prompt": prompt, "max_tokens": count})))
    if tokens_of(answers) != count:
        raise ValueError(f"The answer has {tokens_of(answers)} tokens, not {count}.")
    first = timed(lambda: model.predict({"prompt": other, "max_tokens": 1}))
    return (count - 1) / (whole - first)
