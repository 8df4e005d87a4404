"""A comparison in the active MLflow run: its table, its numbers and a plot."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import mlflow

if TYPE_CHECKING:
    from mlflow_phi3_onnx.evaluation.result import Comparison

__all__ = ["log_comparison", "plot"]

_logger = logging.getLogger(__name__)

_SAME, _REST = "#2a6fbb", "#d9d9d9"


def log_comparison(result: Comparison, name: str) -> None:
    """Log a comparison to the active run, as ``compare`` describes it."""
    mlflow.log_metrics({f"{name}/{key}": value for key, value in result.metrics.items()})
    mlflow.log_table(result.to_pandas(), f"{name}.json")
    mlflow.log_text(repr(result), f"{name}.txt")
    if importlib.util.find_spec("matplotlib") is None:
        _logger.warning("matplotlib is not installed: the comparison is logged without its plot.")
        return
    mlflow.log_figure(plot(result), f"{name}.png")


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
    surprise.set_xlabel(f"model_a: {result.model_a}")
    surprise.set_ylabel(f"model_b: {result.model_b}")
    return figure
