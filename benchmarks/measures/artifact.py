"""The time that it takes to log a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow

import mlflow_phi3_onnx
from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import Scale, Subject
from benchmarks.timing import interleaved, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["log_model"]


def log_model(scale: Scale) -> Iterator[Row]:
    """Compare what `log_model` of a large model takes beyond a small one's with a plain copy."""
    large, small = scale.wide()[0], Subject("demo")
    before = mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
        try:
            experiment = mlflow.create_experiment("log", (work / "artifacts").as_uri())
            with mlflow.start_run(experiment_id=experiment):
                results = interleaved(
                    {
                        "large": lambda _: _log(work, large.folder),
                        "copy": lambda turn: _copy(work, large.folder, turn),
                        "small": lambda _: _log(work, small.folder),
                    },
                    scale.repeats,
                )
        finally:
            mlflow.set_tracking_uri(before)
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
