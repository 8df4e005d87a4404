"""A model under measure: its prompts, and itself as users have it."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow

import mlflow_phi3_onnx
from benchmarks.models import model_folder
from benchmarks.prompts import Prompts
from benchmarks.raw import RawModel
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.runtime.machine import available_threads

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["LOOPS", "Scale", "Subject", "own_store", "tokens_of"]

LOOPS = ("genai", "slots")

T = TypeVar("T")


class Subject:
    """A model under measure.

    Args:
        name: The model's name in the cache.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = model_folder(name)
        self.prompts = Prompts(self.folder)
        self._ends = name == "demo"

    def length(self, tokens: int) -> dict[str, int]:
        """Return the parameters of an answer of just so many tokens."""
        return {"max_tokens": tokens, **({"min_tokens": tokens} if self._ends else {})}

    def raw(self, threads: int | None) -> RawModel:
        """Load the model into onnxruntime-genai."""
        return RawModel(self.folder, threads, ends=self._ends)

    def raw_with_our_threads(self) -> RawModel:
        """Load the model into onnxruntime-genai with as many threads as this package takes."""
        return self.raw(available_threads())

    def native(self, loop: str, **config: Any) -> GenAIModel:
        """Load the model as :class:`mlflow_phi3_onnx.GenAIModel`."""
        return GenAIModel(self.folder, model_config={"loop": loop, **config})

    @contextmanager
    def saved(self, task: Task, **config: Any) -> Generator[Path]:
        """Save the model as an MLflow artifact, for as long as it is needed."""
        with tempfile.TemporaryDirectory() as work:
            target = Path(work) / "model"
            mlflow_phi3_onnx.save_model(self.folder, target, task=task, model_config=config)
            yield target

    @contextmanager
    def pyfuncs(self, task: Task) -> Generator[dict[str, Any]]:
        """Load the model with ``mlflow.pyfunc``, once with each loop."""
        with self.saved(task, loop="auto") as path:
            yield {
                loop: mlflow.pyfunc.load_model(str(path), model_config={"loop": loop})
                for loop in LOOPS
            }


@contextmanager
def own_store() -> Generator[Path]:
    """Let MLflow track in a folder of its own, inside a run, and leave nothing of it."""
    before = mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
        try:
            experiment = mlflow.create_experiment("benchmarks", (work / "artifacts").as_uri())
            with mlflow.start_run(experiment_id=experiment):
                yield work
        finally:
            mlflow.set_tracking_uri(before)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        quick: Whether this only shows that everything runs, with the demo model.
        repeats: How many turns count.
        models: The models whose width is Phi-3-mini's, by their names in the cache.
    """

    quick: bool = False
    repeats: int = 5
    models: tuple[str, ...] = ("mid4-int4-b32", "mid4-int4-b128")

    def pick(self, full: T, quick: T) -> T:
        """Choose between a full and a quick run."""
        return quick if self.quick else full

    def wide(self) -> list[Subject]:
        """Return the models of Phi-3-mini's width; in a quick run, the demo model."""
        return [Subject(name) for name in self.pick(self.models, ("demo",))]

    def small(self) -> Subject:
        """Return the small model of Phi-3's vocabulary; in a quick run, the demo model."""
        return Subject(self.pick("tiny-int4", "demo"))


def tokens_of(answers: list[dict[str, Any]]) -> int:
    """Sum up the tokens that answers say they have."""
    return sum(answer["usage"]["completion_tokens"] for answer in answers)
