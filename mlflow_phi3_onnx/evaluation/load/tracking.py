"""A load test as a run of MLflow, and as files."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tempfile
from typing import TYPE_CHECKING

import mlflow
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx.errors import SaveError
from mlflow_phi3_onnx.evaluation.load.plan import Plan
from mlflow_phi3_onnx.evaluation.load.report import as_json, plot, table
from mlflow_phi3_onnx.evaluation.tracking import link_models

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx.evaluation.load.run import LoadTest

__all__ = ["check_folder", "check_tracking", "log_load_test", "metrics_of", "write_files"]

RESULTS, TABLE, PLOT = "results.json", "table.txt", "plot.png"

_logger = logging.getLogger(__name__)

_NOT_IN_A_NAME = re.compile(r"[^\w\-./]+")


def check_folder(folder: Path) -> None:
    """Make a folder for results, and see that it can be written to.

    Raises:
        SaveError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SaveError(
            f"output: the results cannot be written there ({type(error).__name__}). Name a folder"
            " that can be written to.",
            param="output",
        ) from error


def check_tracking() -> None:
    """See that there is where a run can be logged, and as which one.

    Raises:
        SaveError: If there is not.
    """
    client, active = mlflow.MlflowClient(), mlflow.active_run()
    run_id = active.info.run_id if active else MLFLOW_RUN_ID.get()
    try:
        if run_id:
            client.get_run(run_id)
        else:
            client.search_experiments(max_results=1)
    except MlflowException as error:
        raise SaveError(
            f"No run can be logged: the tracking store, or its run, cannot be read"
            f" ({error.error_code}). Check MLFLOW_TRACKING_URI and MLFLOW_RUN_ID, or log nothing"
            " with --no-log."
        ) from error


def write_files(test: LoadTest, folder: Path) -> None:
    """Write ``results.json``, ``table.txt`` and, where matplotlib is installed, ``plot.png``.

    Raises:
        SaveError: If the folder cannot be written to.
    """
    try:
        (folder / RESULTS).write_text(json.dumps(as_json(test), indent=1) + "\n", encoding="utf-8")
        (folder / TABLE).write_text(table(test) + "\n", encoding="utf-8")
        if _can_plot():
            plot(test).savefig(folder / PLOT)
    except OSError as error:
        raise SaveError(f"The results cannot be written ({type(error).__name__}).") from error


def log_load_test(test: LoadTest) -> str:
    """Log a load test as a run of its own, or into the active one.

    Parameters are the plan and the sides; metrics are the figures of each load over all rounds, by
    ``<load>/<figure>`` for the model, and with ``compare/`` and ``ratio/`` before it for the other
    side and the ratios' medians. Logged models of the store become inputs of the run.

    Returns:
        The run's id.
    """
    active = mlflow.active_run()
    run = active or mlflow.start_run(run_name="bench")
    try:
        plan = {
            name: ",".join(map(str, value)) if isinstance(value, tuple) else value
            for name, value in vars(test.plan).items()
            if value != getattr(Plan, name, None) or isinstance(value, tuple | int | float)
        }
        labels = {name: side.label for name, side in test.sides.items()}
        mlflow.log_params({**plan, **labels})
        link_models([side.place.model_id for side in test.sides.values()])
        mlflow.log_metrics(metrics_of(test))
        mlflow.log_dict(as_json(test), RESULTS)
        mlflow.log_text(table(test), TABLE)
        if _can_plot():
            mlflow.log_figure(plot(test), PLOT)
    finally:
        if active is None:
            mlflow.end_run()
    return run.info.run_id


def metrics_of(test: LoadTest) -> dict[str, float]:
    """Return the metrics of a load test, by the names that :func:`log_load_test` describes."""
    many = len({one.point.lengths for one in test.measured}) > 1
    found: dict[str, float] = {}
    for one in test.measured:
        name = f"{one.point.key}/{one.point.lengths}" if many else one.point.key
        name = _NOT_IN_A_NAME.sub("_", name)
        for side in test.sides:
            prefix = name if side == "model" else f"{side}/{name}"
            figures = one.summary(side).figures()
            found |= {f"{prefix}/{key}": value for key, value in figures.items()}
        found |= {f"ratio/{name}/{key}": ratio.median for key, ratio in one.ratios().items()}
    return found


def _can_plot() -> bool:
    if importlib.util.find_spec("matplotlib"):
        return True
    _logger.warning("matplotlib is not installed: the load test has no plot.")
    return False
