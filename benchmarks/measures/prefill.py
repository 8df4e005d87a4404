"""Prompts with the logits of their last token only, against those of every token."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import Subject
from benchmarks.timing import timed
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.artifact.onnx.chosen_logits import FIRST_WANTED, with_chosen_logits
from mlflow_phi3_onnx.evaluation.load.turns import interleaved
from mlflow_phi3_onnx.runtime.machine import available_threads
from mlflow_phi3_onnx.runtime.ort import SlotSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.subject import Scale

__all__ = ["chosen_logits"]

PROMPTS = (32, 256)
REPEATS = 5


def chosen_logits(scale: Scale) -> Iterator[Row]:
    """Compare the graph of the slots loop as the model brings it with the one that is run."""
    for name in scale.pick((*scale.models, "words7-int4-b128"), ("demo",)):
        model = read_folder(Subject(name).folder)
        graph = model.path / model.filename
        chosen = with_chosen_logits(graph)
        sessions = {
            side: SlotSession(
                graph,
                chosen=given,
                first_wanted=FIRST_WANTED,
                layers=model.layers,
                heads=model.heads,
                head_size=model.head_size,
                element=model.graph.inputs["past_key_values.0.key"],
                slots=1,
                capacity=max(PROMPTS),
                threads=available_threads(),
            )
            for side, given in (("last", chosen), ("every", None))
        }
        for tokens in PROMPTS:
            ids = np.random.default_rng(0).integers(0, model.vocab_size, (1, tokens))
            sides = {side: partial(_prefill, one, ids) for side, one in sessions.items()}
            results = interleaved(sides, scale.pick(REPEATS, 1))
            yield ratio_row(
                "chosen-logits",
                f"{name}, {tokens} tokens",
                Side("logits of the last token", "tokens/s", results["last"]),
                Side("of every token", "tokens/s", results["every"]),
            )


def _prefill(session: SlotSession, ids: np.ndarray, _: int) -> float:
    tokens = ids.shape[1]
    return tokens / timed(lambda: session.run(0, ids, [tokens]))
