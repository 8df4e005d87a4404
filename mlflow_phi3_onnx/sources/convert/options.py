"""How a checkpoint is converted: what may be chosen, and what is taken where nothing is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlflow_phi3_onnx.core.checks import one_of
from mlflow_phi3_onnx.core.options import Option, read, table
from mlflow_phi3_onnx.errors import UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EXPORT_OPTIONS", "Conversion", "Precision"]

Precision = Literal["int4", "int8", "fp16", "fp32"]
"""The form of the weights."""

# fp16 is built for CPU too, but what is built cannot run where heads share keys and values.
_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("int4", "int8", "fp32"),
    "cuda": ("int4", "int8", "fp16", "fp32"),
    "dml": ("int4", "fp16"),
}
_ALGORITHMS = ("default", "rtn", "k_quant")
_MIXED_ALGORITHMS = ("rtn_last", "k_quant_last", "k_quant_mixed")
_QUANTIZED = ("int4", "int8")

EXPORT_OPTIONS = table(
    Option("execution_provider", "What the model is to run on.", one_of(*_PRECISIONS), "cpu"),
    Option(
        "block_size",
        "How many weights share a scale, for int4 and int8; k_quant needs widths that are multiples"
        " of it.",
        one_of(16, 32, 64, 128, 256),
        otherwise="128 on CPU, where it computes faster, else and with k_quant 32",
    ),
    Option(
        "algorithm",
        "How weights are quantized, for int4 and int8; the mixed ones are for int4.",
        one_of(*_ALGORITHMS, *_MIXED_ALGORITHMS),
        "default",
    ),
)
"""The keys of ``export_options``."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a checkpoint is converted, checked.

    Attributes:
        precision: The form of the weights.
        execution_provider: What the model is to run on.
        block_size: How many weights share a scale, where they are quantized.
        algorithm: How they are quantized, where they are.
    """

    precision: str
    execution_provider: str
    block_size: int | None = None
    algorithm: str | None = None

    @classmethod
    def check(cls, precision: str | None, options: Mapping[str, Any] | None) -> Conversion:
        """Check what was chosen.

        Args:
            precision: The form of the weights; None is ``"int4"``.
            options: Values of :data:`EXPORT_OPTIONS`.

        Raises:
            InvalidRequestError: If a value is not what it may be.
            UnsupportedParameterError: If an option is unknown, or has no effect on this precision.
        """
        where = "export_options"
        given = read(EXPORT_OPTIONS, options, "an export option", where, shown=True)
        provider = given.pop("execution_provider", EXPORT_OPTIONS["execution_provider"].default)
        forms = one_of(*_PRECISIONS[provider], note=f" on {provider}")
        chosen = Option("precision", "The form of the weights.", forms).read(
            "int4" if precision is None else precision, shown=True
        )
        if chosen not in _QUANTIZED:
            for name in given:
                raise UnsupportedParameterError(
                    f"{where}: {name} is for int4 and int8, and has no effect on {chosen}.",
                    param=name,
                )
            return cls(precision=chosen, execution_provider=provider)
        algorithm = given.get("algorithm", EXPORT_OPTIONS["algorithm"].default)
        if chosen != "int4":
            pure = one_of(*_ALGORITHMS, note=f" with {chosen}")
            replace(EXPORT_OPTIONS["algorithm"], check=pure).read(algorithm, where, shown=True)
        wide = provider == "cpu" and not algorithm.startswith("k_quant")
        return cls(
            precision=chosen,
            execution_provider=provider,
            block_size=given.get("block_size", 128 if wide else 32),
            algorithm=algorithm,
        )

    def facts(self) -> dict[str, Any]:
        """Return what was chosen, for the MLmodel file."""
        return {name: value for name, value in vars(self).items() if value is not None}
