"""The time that it takes to log a model."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import mlflow_phi3_onnx
from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import Scale, Subject, own_store
from benchmarks.timing import timed
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["log_model"]


def log_model(scale: Scale) -> Iterator[Row]:
    """Compare what `log_model` of a large model takes beyond a small one's with a plain copy."""
    large, small = scale.wide()[0], Subject("demo")
    with own_store() as work:
        results = interleaved(
            {
                "large": lambda _: _log(work, large.folder),
                "copy": lambda turn: _copy(work, large.folder, turn),
                "small": lambda _: _log(work, small.folder),
            },
            scale.repeats,
        )
    pairs = zip(results["large"], results["small"], strict=True)
    yield ratio_row(
        "log-model",
        large.name,
        Side("log_model, beyond the demo model's", "s", [one - other for one, other in pairs]),
        Side("shutil.copytree", "s", results["copy"]),
        {"log_model": results["large"], "log_model_of_the_demo_model": results["small"]},
    )


def _log(work: Path, folder: Path) -> float:
    seconds = _after_sync(lambda: mlflow_phi3_onnx.log_model(folder, name="model"))
    shutil.rmtree(work / "artifacts")
    return seconds


def _copy(work: Path, folder: Path, turn: int) -> float:
    target = work / f"copy{turn}"
    seconds = _after_sync(lambda: shutil.copytree(folder, target))
    shutil.rmtree(target)
    return seconds


def _after_sync(call: Callable[[], object]) -> float:
    """Time a call that writes, when what others wrote is on the disk."""
    if hasattr(os, "sync"):
        os.sync()
    return timed(call)
