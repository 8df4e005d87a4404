"""What it costs to write requests to MLflow as traces."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow

import mlflow_phi3_onnx
from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import LOOPS, Scale
from benchmarks.timing import timed
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from mlflow_phi3_onnx import GenAIModel

__all__ = ["tracing"]

PROMPT_TOKENS = 16
ANSWER_TOKENS = 16


def tracing(scale: Scale) -> Iterator[Row]:
    """Compare a request that is traced with one that is not."""
    subject, turns = scale.wide()[0], scale.pick(16, 1) * scale.repeats
    prompt = partial(subject.prompts.text, PROMPT_TOKENS, "tracing")
    for loop in LOOPS:
        with _store(), subject.native(loop) as model:
            sides = {name: partial(_ask, model, prompt, name) for name in ("traced", "not traced")}
            results = interleaved(sides, turns)
        on, off = (Side(name, "s", results[name]) for name in sides)
        yield ratio_row("tracing", f"`{loop}`, {subject.name}", on, off)


def _ask(model: GenAIModel, prompt: Callable[[int], str], name: str, turn: int) -> float:
    mlflow_phi3_onnx.autolog(disable=name != "traced", silent=True)
    text = prompt(turn)
    seconds = timed(lambda: model.complete(text, max_tokens=ANSWER_TOKENS))
    # What is written beside the request is not to meet the other side.
    mlflow.flush_trace_async_logging()
    return seconds


@contextmanager
def _store() -> Generator[None]:
    """Write to a database of its own."""
    before = mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as work:
        mlflow.set_tracking_uri(f"sqlite:///{Path(work) / 'mlflow.db'}")
        try:
            yield
        finally:
            mlflow_phi3_onnx.autolog(disable=True)
            mlflow.flush_trace_async_logging()
            mlflow.set_tracking_uri(before)
