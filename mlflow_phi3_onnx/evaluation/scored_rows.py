"""Rows of a data set, answered by a model one after the other: their scores, one by one and all."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.errors import GenAIError, UnsupportedParameterError
from mlflow_phi3_onnx.evaluation.text_scores import exact_match, token_f1
from mlflow_phi3_onnx.flavor.output import Answering
from mlflow_phi3_onnx.model.tokens import perplexity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.model.measured import TimedAnswer
    from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = ["COLUMNS", "ScoredRow", "aggregated", "score_rows"]

_WARM_UP = ("Hello", 2)
_AS_TEXT = Answering("text", "raise")
_DISTRIBUTIONS = ("time_to_first_token", "inter_token_latency", "time_per_output_token")


@dataclass
class ScoredRow:
    """One row. What could not be measured is None.

    Attributes:
        output: The answer's text.
        error: Why there is no answer.
        exact_match: Whether the answer is its target: 1 or 0.
        token_f1: How many words they share.
        target_logprobs: The log-probability of each token of the target.
        target_error: Why there are none.
        prompt_tokens: How many tokens the prompt has.
        completion_tokens: How many the answer has.
        seconds: How long the answer took.
        time_to_first_token: Seconds from the request to its first token.
        time_per_output_token: Seconds for each token after those that came first, on average.
        gaps: Seconds between each token and the one before it.
    """

    output: str | None = None
    error: str | None = None
    exact_match: float | None = None
    token_f1: float | None = None
    target_logprobs: list[float] = field(default_factory=list[float])
    target_error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    gaps: list[float] = field(default_factory=list[float])

    @property
    def perplexity(self) -> float | None:
        """The perplexity of the target."""
        return perplexity(self.target_logprobs) if self.target_logprobs else None

    @property
    def target_tokens(self) -> int:
        """How many tokens the target has."""
        return len(self.target_logprobs)

    @property
    def inter_token_latency(self) -> float | None:
        """The median of the gaps."""
        return statistics.median(self.gaps) if self.gaps else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of the answer by the time of the prompt and them."""
        if self.seconds is None or self.completion_tokens is None:
            return None
        return self.completion_tokens / self.seconds


COLUMNS = (
    *("exact_match", "token_f1", "perplexity", "target_tokens", "prompt_tokens"),
    *("completion_tokens", "seconds", "tokens_per_second", *_DISTRIBUTIONS),
    *("error", "target_error"),
)
"""What a table has of each row, beside texts."""


def score_rows(
    model: GenAIModel,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[str] | None,
    *,
    messages: bool,
) -> list[ScoredRow]:
    """Answer rows as streams, one after the other, and score their targets.

    What a model does once, at first, is not timed. A row that fails has its error, and the others
    go on.

    Args:
        model: The model.
        task: What it is asked for.
        rows: The fields of each request.
        targets: The right answers, where there are any.
        messages: Whether errors have their messages, which may quote a request's fields.
    """
    told = _in_full if messages else _by_kind
    text, tokens = _WARM_UP
    model.greedy_tokens(model.tokenize(text), tokens)
    scored: list[ScoredRow] = []
    with rows_done(len(rows)) as bar:
        for place, fields in enumerate(rows):
            row = ScoredRow()
            try:
                _answer(row, model, task, fields)
            except GenAIError as error:
                row.error = told(error)
            if targets is not None:
                # Scored afterwards, for a prompt that was computed before is answered sooner.
                try:
                    _score(row, model, task, fields, targets[place])
                except GenAIError as error:
                    row.target_error = told(error)
            scored.append(row)
            bar.update()
    return scored


def _answer(row: ScoredRow, model: GenAIModel, task: Task, fields: Mapping[str, Any]) -> None:
    answer = model.run_timed(task, fields)
    (row.output,) = _AS_TEXT.written([answer.response], task)
    _time(row, answer)


def _time(row: ScoredRow, answer: TimedAnswer) -> None:
    row.prompt_tokens, row.completion_tokens = answer.prompt_tokens, answer.completion_tokens
    row.seconds, row.time_to_first_token = answer.seconds, answer.time_to_first_token
    row.gaps = answer.inter_token_latencies
    if answer.decode_tokens:
        row.time_per_output_token = answer.decode_seconds / answer.decode_tokens


def _score(
    row: ScoredRow, model: GenAIModel, task: Task, fields: Mapping[str, Any], target: str
) -> None:
    # Where there is no answer, there is no right one.
    row.exact_match = 0.0 if row.output is None else exact_match(row.output, target)
    row.token_f1 = 0.0 if row.output is None else token_f1(row.output, target)
    tokens = model.target_logprobs(task, fields, target)
    row.target_logprobs = [token["logprob"] for token in tokens]


def _in_full(error: GenAIError) -> str:
    return f"{type(error).__name__}: {error.message}"


def _by_kind(error: GenAIError) -> str:
    # A parameter that is not known is a text of the request.
    unknown = isinstance(error, UnsupportedParameterError)
    return type(error).__name__ + ("" if unknown or not error.param else f": {error.param}")


def aggregated(rows: Sequence[ScoredRow], *, targets: bool) -> dict[str, float]:
    """Measure all rows together; what no row has is left out.

    Args:
        rows: The rows.
        targets: Whether there are targets.
    """
    answered = [row for row in rows if row.error is None]
    metrics: dict[str, float] = {"rows": len(rows), "failures": len(rows) - len(answered)}
    if targets:
        logprobs = [logprob for row in rows for logprob in row.target_logprobs]
        metrics |= {
            "exact_match": statistics.fmean(_known(rows, "exact_match")),
            "token_f1": statistics.fmean(_known(rows, "token_f1")),
            "target_tokens": len(logprobs),
            "targets_not_scored": sum(not row.target_logprobs for row in rows),
        }
        if logprobs:
            metrics["perplexity"] = perplexity(logprobs)
    if answered:
        written = sum(_known(answered, "completion_tokens"))
        metrics |= {
            "tokens_per_second": written / math.fsum(_known(answered, "seconds")),
            "prompt_tokens/mean": statistics.fmean(_known(answered, "prompt_tokens")),
            "completion_tokens/mean": statistics.fmean(_known(answered, "completion_tokens")),
            "completion_tokens/total": written,
        }
    gaps = [gap for row in answered for gap in row.gaps]
    for name in _DISTRIBUTIONS:
        samples = gaps if name == "inter_token_latency" else list(_known(answered, name))
        if samples:
            metrics[f"{name}/median"] = float(np.percentile(samples, 50))
            metrics[f"{name}/p95"] = float(np.percentile(samples, 95))
    return metrics


def _known(rows: Iterable[ScoredRow], name: str) -> Iterator[float]:
    return (value for row in rows if (value := getattr(row, name)) is not None)
