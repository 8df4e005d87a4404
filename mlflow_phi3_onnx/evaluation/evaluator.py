"""The evaluator ``onnx-genai`` of ``mlflow.models.evaluate``."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models.evaluation import ModelEvaluator

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME
from mlflow_phi3_onnx.core.checks import allows, anything, boolean, describe_kind, some_of, string
from mlflow_phi3_onnx.core.options import Option, read, table
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.evaluation.evaluator_log import EvaluationLog
from mlflow_phi3_onnx.evaluation.memory import PeakMemory
from mlflow_phi3_onnx.evaluation.scored_rows import COLUMNS, aggregated, score_rows
from mlflow_phi3_onnx.flavor.rows import rows
from mlflow_phi3_onnx.model.native import GenAIModel
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.data.evaluation_dataset import EvaluationDataset

    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.evaluation.scored_rows import ScoredRow

__all__ = ["EVALUATOR_CONFIG", "OnnxGenAIEvaluator"]

_logger = logging.getLogger(__name__)

_TEXT_TYPES = (None, "question-answering", "text", "text-summarization")

_OF_DEFAULT = "What MLflow's own evaluators take: one evaluator_config may be for all evaluators."

_PREFIX = re.compile(r"(\w[\w. -]*/)*(\w[\w. -]*)?", re.ASCII)


@allows(
    "up to 100 letters, digits, '_', '-', '.' and spaces, maybe in folders with '/' behind each",
    type="string",
)
def _prefix(value: Any) -> str:
    if not _PREFIX.fullmatch(string(value)) or len(value) > 100:
        raise ValueError
    return value


EVALUATOR_CONFIG = table(
    Option(
        "log_inputs",
        "Whether the table has each row's inputs and target, and errors their messages; without,"
        " it has no text but the answers.",
        boolean,
        default=True,
    ),
    Option("log_outputs", "Whether the table has the answers.", boolean, default=True),
    Option(
        "metric_prefix",
        "What the names of metrics and files begin with, for several evaluations in one run.",
        _prefix,
        default="",
    ),
    *(
        Option(name, _OF_DEFAULT, anything, status="unused")
        for name in ("col_mapping", "eval_results_path", "eval_results_mode", "retriever_k")
    ),
)
"""The keys of ``evaluator_config``."""


class OnnxGenAIEvaluator(ModelEvaluator):
    """Measures a model of this flavor: how likely its targets are, how like them, and how fast."""

    @classmethod
    def can_evaluate(
        cls,
        *,
        model_type: str | None,
        evaluator_config: Mapping[str, Any],  # noqa: ARG003 - MLflow gives it
        **_: Any,
    ) -> bool:
        """Tell whether it is for models of a type; it is for those that write text."""
        return model_type in _TEXT_TYPES

    def evaluate(
        self,
        *,
        model_type: str | None,  # noqa: ARG002 - MLflow gives it
        dataset: EvaluationDataset,
        run_id: str,
        evaluator_config: Mapping[str, Any],
        model: Any = None,
        extra_metrics: list[Any] | None = None,
        custom_artifacts: list[Any] | None = None,
        predictions: str | None = None,
        **_: Any,
    ) -> Any:  # MLflow's own method says nothing, which type checkers take for None
        """Answer the rows, and log what was measured.

        Args:
            model_type: What MLflow takes the model for.
            dataset: The rows, and their targets where there are any.
            run_id: The run.
            evaluator_config: Values of :data:`EVALUATOR_CONFIG`.
            model: The model.
            extra_metrics: What MLflow's own evaluator is to compute.
            custom_artifacts: The same.
            predictions: The column of the answer, of models that have several.

        Returns:
            An ``EvaluationResult``; None if the model is none of this flavor, loaded in this
            process, so that other evaluators may have it.

        Raises:
            InvalidRequestError: If the configuration or the data are not what they may be, or the
                run has an evaluation of that prefix.
        """
        native = _native(model)
        if native is None:
            _logger.warning(
                "The evaluator onnx-genai leaves this model to other evaluators: it measures models"
                " of the flavor %s that are loaded in this process, not predictions, functions,"
                " endpoints or models in an environment of their own.",
                FLAVOR_NAME,
            )
            return None
        settings = {name: option.default for name, option in EVALUATOR_CONFIG.items()}
        what = "a setting of the evaluator onnx-genai"
        settings |= read(EVALUATOR_CONFIG, evaluator_config, what, "evaluator_config", shown=True)
        given = {
            "extra_metrics": extra_metrics,
            "custom_artifacts": custom_artifacts,
            "predictions": predictions,
        }
        if others := [name for name, value in given.items() if value]:
            _logger.warning(
                "The evaluator onnx-genai does nothing with %s. MLflow's own evaluator does, where"
                " it runs too, as with evaluators=['default', 'onnx-genai'].",
                " and ".join(others),
            )
        log = EvaluationLog(run_id, dataset, settings["metric_prefix"])
        log.refuse_second()
        data = _frame(dataset.features_data, dataset.feature_names)
        targets = _targets(dataset)
        task = model.metadata.flavors[FLAVOR_NAME]["task"]
        # As predict does, so that both read the same rows.
        checked, _params = mlflow_compat.validate_prediction_input(
            data, None, model.metadata.get_input_schema(), None
        )
        requests = rows(checked, task)
        _check_columns(requests, task)
        _check_names(data, dataset.targets_name, settings)
        with PeakMemory() as memory:
            scored = score_rows(native, task, requests, targets, messages=settings["log_inputs"])
        metrics = aggregated(scored, targets=targets is not None)
        metrics["peak_memory_bytes"] = memory.bytes
        return log.write(
            metrics, scored, _table(data, dataset.targets_name, targets, scored, settings)
        )


def _native(model: Any) -> GenAIModel | None:
    """Return the native model of a pyfunc of this flavor, where it is in this process."""
    flavors = getattr(getattr(model, "metadata", None), "flavors", None) or {}
    if FLAVOR_NAME not in flavors or not hasattr(model, "get_raw_model"):
        return None
    try:
        native = model.get_raw_model()
    except NotImplementedError:  # a model that MLflow serves in an environment of its own
        return None
    return native if isinstance(native, GenAIModel) else None


def _frame(features: Any, names: list[str]) -> pd.DataFrame:
    if isinstance(features, pd.DataFrame):
        return features.reset_index(drop=True)
    return pd.DataFrame(features, columns=names)


def _targets(dataset: EvaluationDataset) -> list[str] | None:
    if dataset.labels_data is None:
        return None
    targets = list(dataset.labels_data)
    if wrong := [str(place) for place, one in enumerate(targets) if not isinstance(one, str)]:
        raise InvalidRequestError(
            f"targets must be strings; row {wrong[0]} has {describe_kind(targets[int(wrong[0])])}."
            f" No strings are in the rows {some_of(wrong)}. Give them targets, or drop them:"
            " data.dropna(subset=...) drops those that have none.",
            param="targets",
        )
    return targets


def _check_columns(requests: list[dict[str, Any]], task: Task) -> None:
    known = {INPUT_FIELDS[task], *PARAMETERS[task]}
    if unknown := sorted({name for row in requests for name in row} - known):
        raise InvalidRequestError(
            f"The columns {some_of(unknown)} are no fields of a request of {task}. Drop them:"
            " data.drop(columns=...).",
            param="data",
        )


def _check_names(data: pd.DataFrame, targets_name: str | None, settings: Mapping[str, Any]) -> None:
    """Refuse columns that the table would have twice."""
    if not settings["log_inputs"]:
        return
    names = [*map(str, data), *filter(None, [targets_name]), "outputs", *COLUMNS]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InvalidRequestError(
            f"The table would have the columns {some_of(twice)} twice: from the data, and as what"
            " is measured. Rename them in the data, or set log_inputs to false.",
            param="data",
        )


def _table(
    data: pd.DataFrame,
    targets_name: str | None,
    targets: list[str] | None,
    scored: list[ScoredRow],
    settings: Mapping[str, Any],
) -> pd.DataFrame:
    # Of pandas 3's strings, MLflow's log_table warns: texts are objects.
    columns: dict[str, Any] = {}
    if settings["log_inputs"]:
        columns |= {str(name): data[name].astype(object) for name in data}
        columns |= {} if targets is None else {targets_name or "target": _texts(targets)}
    if settings["log_outputs"]:
        columns["outputs"] = _texts([row.output for row in scored])
    for name in COLUMNS:
        values = [getattr(row, name) for row in scored]
        columns[name] = _texts(values) if name.endswith("error") else pd.Series(values, dtype=float)
    return pd.DataFrame(columns)


def _texts(values: list[Any]) -> pd.Series[Any]:
    return pd.Series(values, dtype=object)
