"""What the evaluator writes into a run: metrics, curves over the rows, a table and a plot."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.models.evaluation import EvaluationResult
from mlflow.models.evaluation.artifacts import ImageEvaluationArtifact, JsonEvaluationArtifact
from PIL import Image

from mlflow_phi3_onnx.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from mlflow.data.evaluation_dataset import EvaluationDataset

    from mlflow_phi3_onnx.evaluation.scored_rows import ScoredRow

__all__ = ["EvaluationLog"]

# Not the name of the default evaluator's table: to one that exists, MLflow appends rows.
_TABLE, _PLOT = "onnx_genai_results_table", "onnx_genai_plot"

_IN_EVERY = "peak_memory_bytes"
"""A metric that every evaluation has, and hardly anything else."""

_CURVES = {
    "perplexity": "perplexity of the target",
    "token_f1": "F1 of the answer's words",
    "time_to_first_token": "time to first token, s",
    "inter_token_latency": "median inter-token latency, s",
}
_MOST_METRICS = 1000
_COLOR = "#2a6fbb"


@dataclass(frozen=True)
class EvaluationLog:
    """Where an evaluation is logged.

    Attributes:
        run_id: The run.
        dataset: The data set that they are of.
        prefix: What names begin with.
    """

    run_id: str
    dataset: EvaluationDataset
    prefix: str

    def refuse_second(self) -> None:
        """Refuse to evaluate again under names that the run has: MLflow would append to its table.

        Raises:
            InvalidRequestError: If the run has an evaluation of this prefix.
        """
        if f"{self.prefix}{_IN_EVERY}" in MlflowClient().get_run(self.run_id).data.metrics:
            raise InvalidRequestError(
                "metric_prefix: the run has an evaluation with this one already. Set another, or"
                " evaluate in another run.",
                param="metric_prefix",
            )

    def write(
        self, metrics: dict[str, float], rows: Sequence[ScoredRow], table: pd.DataFrame
    ) -> EvaluationResult:
        """Log a result, and return it as MLflow has results."""
        named = {f"{self.prefix}{name}": value for name, value in metrics.items()}
        curves = {name: _values(rows, name) for name in _CURVES}
        points = [self._metric(name, value) for name, value in named.items()]
        points += [
            self._metric(f"{self.prefix}row/{name}", value, step)
            for name, values in curves.items()
            for step, value in values.items()
        ]
        client = MlflowClient()
        # MLflow gives the named ones to the model, too. Here it would do so with each row, for a
        # model is active in this thread.
        with ThreadPoolExecutor(1) as other:
            for start in range(0, len(points), _MOST_METRICS):
                part = points[start : start + _MOST_METRICS]
                other.submit(client.log_batch, self.run_id, part).result()
        table_file, plot_file = f"{self.prefix}{_TABLE}.json", f"{self.prefix}{_PLOT}.png"
        mlflow.log_table(table, table_file, run_id=self.run_id)
        image = _image(curves)
        client.log_image(self.run_id, image, plot_file)
        artifacts = {
            f"{self.prefix}{_TABLE}": JsonEvaluationArtifact(
                self._uri(table_file), json.loads(table.to_json(orient="split"))
            ),
            f"{self.prefix}{_PLOT}": ImageEvaluationArtifact(self._uri(plot_file), image),
        }
        return EvaluationResult(named, artifacts, self.run_id)

    def _metric(self, name: str, value: float, step: int = 0) -> Metric:
        return Metric(
            name,
            value,
            int(time.time() * 1000),
            step,
            dataset_name=self.dataset.name,
            dataset_digest=self.dataset.digest,
            run_id=self.run_id,
        )

    def _uri(self, file: str) -> str:
        return f"runs:/{self.run_id}/{file}"


def _values(rows: Sequence[ScoredRow], name: str) -> dict[int, float]:
    """Return what rows have of something, by their numbers."""
    every = {number: getattr(row, name) for number, row in enumerate(rows)}
    return {number: value for number, value in every.items() if value is not None}


def _image(curves: dict[str, dict[int, float]]) -> Any:
    """Draw how many rows have which values; no text of a row is on it."""
    known = {name: list(values.values()) for name, values in curves.items() if values}
    lines = max((len(known) + 1) // 2, 1)
    figure = Figure(figsize=(8, 3 * lines))
    low = 0.22 / lines
    figure.subplots_adjust(0.08, low, 0.97, 1 - low / 4, wspace=0.25, hspace=0.35)
    for place, (name, values) in enumerate(known.items(), 1):
        axes = figure.add_subplot(lines, min(len(known), 2), place)
        axes.hist(values, bins=min(len(values), 30), color=_COLOR)
        axes.set(xlabel=_CURVES[name], ylabel="rows")
        axes.locator_params(nbins=4)
        axes.ticklabel_format(useOffset=False)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    image = Image.open(written)
    image.load()
    return image
