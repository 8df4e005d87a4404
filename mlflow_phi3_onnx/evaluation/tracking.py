"""A comparison in the active MLflow run: its table, its numbers and a plot."""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_phi3_onnx.evaluation.result import Comparison
    from mlflow_phi3_onnx.evaluation.side import Side

__all__ = ["link_models", "log_comparison", "log_result", "plot", "will_log"]

_logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_SAME, _REST = "#2a6fbb", "#d9d9d9"


def will_log(name: Any, *, log: bool) -> bool:
    """Tell whether a result is to be logged: if that is wanted, and there is an active run.

    Args:
        name: What it is called in the run, whose tables MLflow would add to.
        log: Whether that is wanted.

    Raises:
        InvalidRequestError: If the name is none for a file, or the run has a result of that name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            "name must be of letters, digits, '_', '.' and '-', and begin with a letter or digit.",
            param="name",
        )
    run = mlflow.active_run() if log else None
    if run is None:
        return False
    data = MlflowClient().get_run(run.info.run_id).data
    if any(key.startswith(f"{name}/") for key in data.params):
        raise InvalidRequestError(
            f"name: the active run has a result {name!r} already. Give another name, or log=False.",
            param="name",
        )
    return True


def log_comparison(result: Comparison, name: str, sides: Sequence[Side]) -> None:
    """Log a comparison to the active run, as ``compare`` describes it."""
    known = {
        "model_a": result.model_a,
        "model_b": result.model_b,
        "max_tokens": result.max_tokens,
        "prompts": len(result.prompts),
        "prompt_tokens": sum(row.prompt_tokens for row in result.prompts),
    }
    mlflow.log_params({f"{name}/{key}": value for key, value in known.items()})
    model_ids = link_models([side.place.model_id for side in sides])
    metrics = {f"{name}/{key}": value for key, value in result.metrics.items()}
    mlflow.log_metrics(metrics, model_id=model_ids[1])
    log_result(result, name, plot)


def log_result(result: Any, name: str, draw: Callable[[Any], Any]) -> None:
    """Log a result's table, its summary and its plot to the active run."""
    mlflow.log_table(result.to_pandas(), f"{name}.json")
    mlflow.log_text(repr(result), f"{name}.txt")
    if importlib.util.find_spec("matplotlib") is None:
        _logger.warning("matplotlib is not installed: %s is logged without its plot.", name)
        return
    mlflow.log_figure(draw(result), f"{name}.png")


def _in_this_store(model_id: str | None) -> str | None:
    """Return a logged model's id if this store has it: a copied artifact may be of another."""
    try:
        return model_id and MlflowClient().get_logged_model(model_id).model_id
    except MlflowException:
        return None


def link_models(model_ids: Sequence[str | None]) -> list[str | None]:
    """Make logged models inputs of the active run, those that are not yet linked with it.

    Returns:
        The ids that this store has; None in the places of others.
    """
    here = [_in_this_store(model_id) for model_id in model_ids]
    known = [model_id for model_id in here if model_id]
    run = mlflow.active_run()
    if run is not None and known:
        client = MlflowClient()
        linked = client.get_run(run.info.run_id)
        outputs = linked.outputs.model_outputs if linked.outputs else []
        inputs = linked.inputs.model_inputs if linked.inputs else []
        have = {model.model_id for model in [*inputs, *outputs]}
        new = [LoggedModelInput(one) for one in dict.fromkeys(known) if one not in have]
        client.log_inputs(run.info.run_id, models=new)
    return here


def plot(result: Comparison) -> Any:
    """Draw a comparison: where each prompt's completions part, and its two perplexities.

    Returns:
        A figure of matplotlib. It belongs to no window, and no text of a prompt is on it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    completions, surprise = figure.subplots(1, 2)

    numbers = range(len(result.prompts))
    longest = [max(row.tokens_a, row.tokens_b) for row in result.prompts]
    same = [row.agreement * most for row, most in zip(result.prompts, longest, strict=True)]
    completions.bar(numbers, longest, color=_REST, label="the longer answer")
    completions.bar(numbers, same, color=_SAME, label="before the first difference")
    completions.set(title="Greedy answers", xlabel="prompt", ylabel="tokens")
    completions.xaxis.get_major_locator().set_params(integer=True)
    completions.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)

    a = [row.perplexity_a for row in result.prompts]
    b = [row.perplexity_b for row in result.prompts]
    ends = [min(a + b), max(a + b)]
    surprise.plot(ends, ends, color=_REST, zorder=0)
    surprise.scatter(a, b, color=_SAME, s=18)
    surprise.set(title="Perplexity of each prompt", xscale="log", yscale="log")
    surprise.set(xlabel="model_a", ylabel="model_b")
    figure.suptitle(f"model_a: {result.model_a}\nmodel_b: {result.model_b}", fontsize="medium")
    return figure
