"""What a measure finds, and the targets that it is held to."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from mlflow_phi3_onnx.evaluation.load.turns import paired

__all__ = [
    "TARGETS",
    "Compared",
    "Converted",
    "Result",
    "Rounding",
    "Row",
    "Side",
    "Speeds",
    "Target",
    "ratio_row",
]


@dataclass(frozen=True)
class Target:
    """What is promised of a measure.

    Attributes:
        measure: What is compared with what.
        limit: The figure that counts as met.
        at_most: Whether the limit is the highest figure that counts, or the lowest.
        unit: Of the figure; ``x`` is a ratio.
    """

    measure: str
    limit: float
    at_most: bool
    unit: str = "x"

    def met(self, figure: float) -> bool:
        """Tell whether a figure is within the limit."""
        return figure <= self.limit if self.at_most else figure >= self.limit


TARGETS = {
    "predict": Target("`predict` of one row against a raw onnxruntime-genai loop", 1.02, True),
    "plain-token": Target("overhead per token, plain", 30, True, "µs"),
    "featured-token": Target(
        "overhead per token, with every sampling feature on (vocabulary 32,064)", 300, True, "µs"
    ),
    "frame-defaults": Target(
        "32 ragged rows against one at a time with onnxruntime-genai's defaults, throughput",
        4,
        False,
    ),
    "frame-batch": Target(
        "32 ragged rows against the best fixed-batch raw loop, throughput", 1.3, False
    ),
    "clients": Target("8 clients against 1, through `mlflow models serve`, throughput", 2.5, False),
    "served-token": Target(
        "a streamed token of this package's server, against one of the native API, time", 1.05, True
    ),
    "served-clients": Target(
        "8 clients against 1, at this package's server, throughput", 2.5, False
    ),
    "late-arrival": Target(
        "first token of a short request beside a 500-token answer, against alone", 2, True
    ),
    "second-turn": Target(
        "first token of a second turn after 500 tokens of history, against cold", 0.1, True
    ),
    "ping": Target("`/ping` during a prefill of 2,000 tokens, p99", 50, True, "ms"),
    "refusal": Target("a refusal under four times the load, p99", 100, True, "ms"),
    "transformers": Target(
        "decoding against the same weights in `mlflow.transformers` (bf16)", 4, False
    ),
    "memory": Target(
        "resident memory after 1,000 requests and 200 cancellations, against after 100",
        3,
        True,
        "%",
    ),
    "worker-streamed": Target(
        "a streamed token of a worker process, against one of this process, time", 1.05, True
    ),
    "worker-whole": Target(
        "a token of a whole completion of a worker process, against one of this process, time",
        1.05,
        True,
    ),
    "shared-memory": Target(
        "memory of processes that share a worker, against as many that do not", 0.6, True
    ),
    "tracing": Target(
        "a request of 16 tokens that is written as a trace, against one that is not, time",
        1.1,
        True,
    ),
    "chosen-logits": Target(
        "a prompt with the logits of its last token, against those of every token", 1.1, False
    ),
    "log-model": Target(
        "`log_model` of mid4 less `log_model` of the demo model, against a plain copy", 1.5, True
    ),
}
"""The targets, by name."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: What it is.
        unit: Of its samples.
        samples: One for each repeat.
    """

    name: str
    unit: str
    samples: list[float]

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        target: The name of its target.
        variant: Which loop and which model.
        ours: This package.
        reference: What it is compared with.
        figures: What the target speaks of, for each repeat; their median counts.
        details: What else was measured, by name.
    """

    target: str
    variant: str
    ours: Side
    reference: Side
    figures: list[float]
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON, its medians, target and verdict with it."""
        target = TARGETS[self.target]
        figure = statistics.median(self.figures)
        return {
            "target": self.target,
            "measure": target.measure,
            "variant": self.variant,
            "ours": {**asdict(self.ours), "median": self.ours.median},
            "reference": {**asdict(self.reference), "median": self.reference.median},
            "figure": {
                "unit": target.unit,
                "samples": self.figures,
                "median": figure,
                "low": min(self.figures),
                "high": max(self.figures),
            },
            "limit": target.limit,
            "at_most": target.at_most,
            "met": target.met(figure),
            "details": self.details,
        }


def ratio_row(
    target: str,
    variant: str,
    ours: Side,
    reference: Side,
    details: dict[str, Any] | None = None,
) -> Row:
    """Compare two sides by the ratio of each pair of samples."""
    figures = paired(ours.samples, reference.samples)
    return Row(target, variant, ours, reference, figures, details or {})


@dataclass(frozen=True)
class Speeds:
    """What a processor gives to any loop.

    Attributes:
        model: The model's name.
        prefill: Tokens of a long prompt in a second.
        decode: Tokens in a second, by the number of rows that are decoded together.
    """

    model: str
    prefill: float
    decode: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        """Return the speeds as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """What a program makes of a checkpoint, beside others in the same turns.

    Attributes:
        program: The program, or the loop, and the form of the weights.
        samples: Tokens in a second, by what was done.
    """

    program: str
    samples: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"kind": "compared", **asdict(self)}


@dataclass(frozen=True)
class Converted:
    """What it took to convert a checkpoint, log it, load it and ask it.

    Attributes:
        parameters: How many weights it has.
        precision: What they were converted to.
        block_size: How many of them share a scale.
        checkpoint_bytes: What the checkpoint takes on the disk.
        model_bytes: What the model takes there.
        builder_bytes: The most memory that the builder had.
        log_model_seconds: For `log_model`, the conversion included.
        load_seconds: For `load_model`.
        answer_seconds: For the first answer.
        answer_tokens: How many tokens it has.
    """

    parameters: int
    precision: str
    block_size: int
    checkpoint_bytes: int
    model_bytes: int
    builder_bytes: int
    log_model_seconds: float
    load_seconds: float
    answer_seconds: float
    answer_tokens: int

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"kind": "converted", **asdict(self)}


@dataclass(frozen=True)
class Rounding:
    """How far the logits of a converted model are from those of its fp32 form.

    Attributes:
        precision: What its weights were converted to.
        algorithm: How.
        block_size: How many of them share a scale.
        error: The standard deviation of the difference, by that of the fp32 logits.
    """

    precision: str
    algorithm: str
    block_size: int
    error: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"kind": "rounding", **asdict(self)}


Result: TypeAlias = Row | Speeds | Compared | Converted | Rounding
