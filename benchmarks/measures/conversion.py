"""What converting a PyTorch checkpoint takes, and what it loses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.models import Model

import mlflow_phi3_onnx
from benchmarks.models import MID4, TINY, WIDE2, checkpoint_folder
from benchmarks.results import Converted, Rounding
from benchmarks.subject import own_store
from benchmarks.timing import timed
from mlflow_phi3_onnx.runtime.genai import NativeModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from benchmarks.subject import Scale

__all__ = ["conversion"]

ANSWER_TOKENS = 16
PROMPT_TOKENS = 64
FORMS: tuple[tuple[str, str, int], ...] = (
    ("int4", "default", 32),
    ("int4", "default", 128),
    ("int4", "rtn", 32),
    ("int4", "rtn", 128),
    ("int4", "k_quant", 32),
    ("int4", "k_quant", 128),
    ("int4", "k_quant_mixed", 32),
    ("int8", "default", 128),
)


def conversion(scale: Scale) -> Iterator[Converted | Rounding]:
    """Convert, log, load and ask a checkpoint; then compare the logits of other forms of one.

    The checkpoint is mid4's: 650 million weights in bfloat16. The forms are of a model of two
    layers whose width is 1,024, against its own fp32 form.
    """
    yield _convert(scale)
    checkpoint = checkpoint_folder(scale.pick(WIDE2, TINY))
    forms = scale.pick(FORMS, FORMS[:1])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        exact = _logits(_saved(checkpoint, work / "fp32", "fp32", {}))
        for precision, algorithm, block in forms:
            options = {"algorithm": algorithm, "block_size": block}
            target = work / f"{precision}-{algorithm}-{block}"
            logits = _logits(_saved(checkpoint, target, precision, options))
            error = float(np.std(logits - exact) / np.std(exact))
            yield Rounding(precision, algorithm, block, error)


def _convert(scale: Scale) -> Converted:
    checkpoint = checkpoint_folder(scale.pick(MID4, TINY))
    with own_store():
        logged: list[Any] = []
        seconds = timed(lambda: logged.append(mlflow_phi3_onnx.log_model(checkpoint, name="model")))
        uri = logged[0].model_uri
        loaded: list[Any] = []
        load = timed(lambda: loaded.append(mlflow_phi3_onnx.load_model(uri)))
        question = [{"role": "user", "content": "What is the capital of Spain?"}]
        with loaded[0] as model:
            answer = timed(lambda: model.chat(question, max_tokens=ANSWER_TOKENS))
        flavor = Model.load(uri).flavors["mlflow_phi3_onnx"]
    facts = flavor["source"]["conversion"]
    size = sum(file["size"] for file in flavor["files"].values())
    return Converted(
        parameters=facts["parameters"],
        precision=facts["precision"],
        block_size=facts["block_size"],
        checkpoint_bytes=sum(path.stat().st_size for path in checkpoint.iterdir()),
        model_bytes=size,
        builder_bytes=facts["peak_memory_bytes"],
        log_model_seconds=seconds,
        load_seconds=load,
        answer_seconds=answer,
        answer_tokens=ANSWER_TOKENS,
    )


def _saved(checkpoint: Path, target: Path, precision: Any, options: dict[str, Any]) -> Path:
    mlflow_phi3_onnx.save_model(
        checkpoint, target, precision=precision, export_options=options or None
    )
    return target / "model"


def _logits(folder: Path) -> NDArray[np.float32]:
    """Return the logits that follow each token of a prompt drawn at random."""
    ids = np.random.default_rng(0).integers(500, 30_000, PROMPT_TOKENS).astype(np.int32)
    generator = NativeModel(folder, {}).generator(1, PROMPT_TOKENS + 1)
    generator.extend(ids)
    return generator.all_logits().copy()
