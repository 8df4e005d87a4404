"""How a checkpoint is converted: what may be chosen, and what is taken where nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

__all__ = ["Conversion", "Precision"]

Precision = Literal["int4", "int8", "fp16", "fp32"]
"""The form of the weights."""

# fp16 is built for CPU too, but what is built cannot run where heads share keys and values.
_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("int4", "int8", "fp32"),
    "cuda": ("int4", "int8", "fp16", "fp32"),
    "dml": ("int4", "fp16"),
}
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_ALGORITHMS = ("default", "rtn", "k_quant")
_MIXED_ALGORITHMS = ("rtn_last", "k_quant_last", "k_quant_mixed")
_QUANTIZED = ("int4", "int8")


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
    block_size: int | None
    algorithm: str | None

    @classmethod
    def check(cls, precision: str | None, options: Mapping[str, Any] | None) -> Conversion:
        """Check what was chosen.

        Args:
            precision: The form of the weights; None is ``"int4"``.
            options: ``block_size`` (16 to 256, powers of two; by default 128 on CPU, where it
                computes faster, else 32; with k_quant, which needs widths that are multiples of
                it, always 32), ``algorithm`` (``"default"``, ``"rtn"``, ``"rtn_last"``,
                ``"k_quant"``, ``"k_quant_last"`` or ``"k_quant_mixed"``) and
                ``execution_provider`` (``"cpu"``, ``"cuda"`` or ``"dml"``).

        Raises:
            InvalidRequestError: If a value is not what it may be.
            UnsupportedParameterError: If an option is unknown, or has no effect on this precision.
        """
        if options is not None and not isinstance(options, Mapping):
            raise InvalidRequestError(
                f"export_options must be a mapping; got {describe_kind(options)}.",
                param="export_options",
            )
        given = {name: value for name, value in (options or {}).items() if value is not None}
        known = ("execution_provider", "block_size", "algorithm")
        if unknown := [name for name in given if name not in known]:
            raise UnsupportedParameterError(
                f"export_options: {unknown[0]} is unknown; there are {', '.join(known)}.",
                param="export_options",
            )
        provider = _one_of("execution_provider", given.get("execution_provider"), [*_PRECISIONS])
        chosen = _one_of("precision", precision, _PRECISIONS[provider], f" on {provider}")
        if chosen not in _QUANTIZED:
            for name in ("block_size", "algorithm"):
                if name in given:
                    raise UnsupportedParameterError(
                        f"export_options: {name} is for int4 and int8, and has no effect on"
                        f" {chosen}.",
                        param="export_options",
                    )
            return cls(
                precision=chosen, execution_provider=provider, block_size=None, algorithm=None
            )
        algorithms = _ALGORITHMS + (_MIXED_ALGORITHMS if chosen == "int4" else ())
        algorithm = _one_of("algorithm", given.get("algorithm"), algorithms)
        wide = provider == "cpu" and not algorithm.startswith("k_quant")
        block_size = given.get("block_size", 128 if wide else 32)
        if isinstance(block_size, bool) or block_size not in _BLOCK_SIZES:
            raise InvalidRequestError(
                f"export_options: block_size must be one of {_list(_BLOCK_SIZES)}.",
                param="export_options",
            )
        return cls(
            precision=chosen,
            execution_provider=provider,
            block_size=int(block_size),
            algorithm=algorithm,
        )

    def facts(self) -> dict[str, Any]:
        """Return what was chosen, for the MLmodel file."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _one_of(name: str, value: Any, allowed: Any, where: str = "") -> str:
    """Check a choice; the first of what is allowed is the default."""
    if value is None:
        return allowed[0]
    if isinstance(value, str) and value in allowed:
        return value
    field = "precision" if name == "precision" else "export_options"
    prefix = "" if field == name else f"{field}: "
    raise InvalidRequestError(
        f"{prefix}{name} must be one of {_list(allowed)}{where}.", param=field
    )


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
