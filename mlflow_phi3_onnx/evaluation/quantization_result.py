"""What a quantization report found, form by form, and its plot."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Measured", "QuantizationReport", "VariantReport", "judged", "plot"]

_FRONT, _REST = "#2a6fbb", "#9a9a9a"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one form of a model.

    Attributes:
        name: The form's name.
        size_bytes: The bytes of its files.
        quality: What ``likeness`` says of the reference and it.
        prefill: Prompt tokens per second, turn by turn.
        decode: Completion tokens per second after the first, turn by turn.
        peak_memory_bytes: The most memory that its process took.
    """

    name: str
    size_bytes: int
    quality: Mapping[str, float]
    prefill: Sequence[float]
    decode: Sequence[float]
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """One form of the model: a row of the table.

    Attributes:
        name: Its precision, and where weights are quantized, how many share a scale and how.
        worth_having: Whether no other form is as small, as near to the reference and as fast, and
            better in one of them: whether it is on the Pareto front. A form counts as slower than
            another only if it was in every turn.
        size_bytes: The bytes of its files.
        perplexity: The perplexity of the texts.
        likeliest_agreement: The share of the texts' tokens in whose places the reference has the
            same most likely token, given the true tokens before it.
        logprob_difference: The mean absolute difference, in nats, between the log-probabilities
            that it and the reference give to the texts' tokens: how far it is from the reference.
        prefill_tokens_per_second: Prompt tokens by the time to the first token; the median turn.
        decode_tokens_per_second: The tokens after the first by the time that they took; the median.
        decode_ratio: That of the first form in the same turn as 1; the median turn.
        decode_ratio_low: The lowest turn.
        decode_ratio_high: The highest turn.
        peak_memory_bytes: The most resident memory of the process that ran it, from its start on.
    """

    name: str
    worth_having: bool
    size_bytes: int
    perplexity: float
    likeliest_agreement: float
    logprob_difference: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_ratio: float
    decode_ratio_low: float
    decode_ratio_high: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True, repr=False)
class QuantizationReport:
    """What :func:`mlflow_phi3_onnx.quantization_report` found. Printed, it is a table.

    Attributes:
        reference: What the forms were compared with, in a few words.
        reference_perplexity: The perplexity of the texts under it.
        texts: How many texts there were.
        text_tokens: How many tokens they have together.
        max_tokens: How many tokens were written after each.
        repeats: How many turns were measured.
        variants: What was measured of each form, in the order of ``precisions``.
        failed: Why a form could not be made, by its name.
    """

    reference: str
    reference_perplexity: float
    texts: int
    text_tokens: int
    max_tokens: int
    repeats: int
    variants: tuple[VariantReport, ...]
    failed: Mapping[str, str]

    @property
    def worth_having(self) -> list[str]:
        """The names of the forms that are worth having on this machine."""
        return [variant.name for variant in self.variants if variant.worth_having]

    def to_pandas(self) -> pd.DataFrame:
        """Return the table: one row a form, with the fields of :class:`VariantReport`."""
        rows = pd.DataFrame([asdict(variant) for variant in self.variants])
        return rows.astype({"name": object})  # of pandas 3's strings, MLflow's log_table warns

    def __repr__(self) -> str:
        head = (
            f"{self.texts:,} texts of {self.text_tokens:,} tokens together, and"
            f" {self.max_tokens:,} tokens after each, in {self.repeats:,} turns"
        )
        lines = [
            head,
            f"  reference: {self.reference}, perplexity {self.reference_perplexity:.3f}",
            "",
            f"  {'':<20}{'MB':>9}{'perplexity':>12}{'agreement':>11}{'prefill/s':>11}"
            f"{'decode/s':>10}{'ratio (low-high)':>20}{'peak MB':>9}",
        ]
        for one in self.variants:
            ratios = f"{one.decode_ratio_low:.2f}-{one.decode_ratio_high:.2f}"
            lines.append(
                f"{'* ' if one.worth_having else '  '}{one.name:<20}{one.size_bytes / 1e6:>9.1f}"
                f"{one.perplexity:>12.3f}{one.likeliest_agreement:>11.1%}"
                f"{one.prefill_tokens_per_second:>11.1f}{one.decode_tokens_per_second:>10.1f}"
                f"{f'{one.decode_ratio:.2f} ({ratios})':>20}{one.peak_memory_bytes / 1e6:>9.0f}"
            )
        lines += ["", "  * worth having here: no other is as small, as near and as fast"]
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in self.failed.items())])


def judged(measured: Sequence[Measured]) -> tuple[VariantReport, ...]:
    """Report forms that took turns; speeds are related to the first one's in the same turn."""
    first = measured[0]
    reports: list[VariantReport] = []
    for one in measured:
        ratios = [speed / other for speed, other in zip(one.decode, first.decode, strict=True)]
        report = VariantReport(
            name=one.name,
            worth_having=not any(_dominates(other, one) for other in measured),
            size_bytes=one.size_bytes,
            perplexity=one.quality["perplexity_b"],
            likeliest_agreement=one.quality["likeliest_agreement"],
            logprob_difference=one.quality["logprob_difference"],
            prefill_tokens_per_second=statistics.median(one.prefill),
            decode_tokens_per_second=statistics.median(one.decode),
            decode_ratio=statistics.median(ratios),
            decode_ratio_low=min(ratios),
            decode_ratio_high=max(ratios),
            peak_memory_bytes=one.peak_memory_bytes,
        )
        reports.append(report)
    return tuple(reports)


def _dominates(one: Measured, other: Measured) -> bool:
    """Tell whether a form is in nothing worse than another, and in something better."""
    sizes = one.size_bytes, other.size_bytes
    distances = (one.quality["logprob_difference"], other.quality["logprob_difference"])
    if sizes[0] > sizes[1] or distances[0] > distances[1] or _is_faster(other, one):
        return False
    return sizes[0] < sizes[1] or distances[0] < distances[1] or _is_faster(one, other)


def _is_faster(one: Measured, other: Measured) -> bool:
    return all(a > b for a, b in zip(one.decode, other.decode, strict=True))


def plot(report: QuantizationReport) -> Any:
    """Draw forms by size, speed and distance from the reference.

    Returns:
        A figure of matplotlib, that belongs to no window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    fast, near = figure.subplots(1, 2)
    sides = (
        (fast, "decode_tokens_per_second", "decode, tokens per second: higher is better"),
        (near, "logprob_difference", "distance from the reference, nats: lower is better"),
    )
    for axes, field, label in sides:
        for one in report.variants:
            place = (one.size_bytes / 1e6, getattr(one, field))
            axes.scatter(*place, color=_FRONT if one.worth_having else _REST, s=30)
            axes.annotate(one.name, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="size, MB: lower is better", ylabel=label)
        axes.margins(x=0.25)
    figure.suptitle(f"Blue: worth having on this machine. Reference: {report.reference}", size=10)
    return figure
