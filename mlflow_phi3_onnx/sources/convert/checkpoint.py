"""A transformers checkpoint on disk: whether it is whole, and what it says of the model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.sources.layout import CHECKPOINT_CONFIG, WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GENERATION_FILE", "TOKENIZER_FILE", "Checkpoint", "read_checkpoint"]

GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"

_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "tekken.json")
_WEIGHTS_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and found whole.

    Attributes:
        path: Its folder.
        architecture: The name of its class in transformers.
        layers: How many layers it has, or 0 where it does not say.
        parameters: How many numbers its weights are.
        generation: Its defaults for generation.
    """

    path: Path
    architecture: str
    layers: int
    parameters: int
    generation: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's headers and check that it is whole, without reading its weights.

    Args:
        path: The folder with ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        InvalidModelError: If something is missing or cut short, or it is quantized already.
    """
    config = _read_json(path, CHECKPOINT_CONFIG)
    architectures = config.get("architectures")
    if not (isinstance(architectures, list) and architectures):
        raise InvalidModelError(
            f"{CHECKPOINT_CONFIG} names no architectures, so it is not that of a whole model."
        )
    if config.get("quantization_config"):
        raise InvalidModelError(
            "The checkpoint is quantized already. Give the one that it was made from, and choose a"
            " precision."
        )
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise InvalidModelError(
            "The checkpoint has no tokenizer. Save one beside it, with"
            " tokenizer.save_pretrained(folder)."
        )
    generation = _read_json(path, GENERATION_FILE) if (path / GENERATION_FILE).is_file() else {}
    layers = config.get("num_hidden_layers")
    return Checkpoint(
        path=path,
        architecture=str(architectures[0]),
        layers=layers if isinstance(layers, int) else 0,
        parameters=sum(_count_parameters(path / name) for name in _weights(path)),
        generation=generation,
    )


def _weights(path: Path) -> list[str]:
    """Name the weights files that there must be, and are."""
    names = sorted(file.name for file in path.iterdir() if WEIGHTS.fullmatch(file.name))
    if (path / _WEIGHTS_INDEX).is_file():
        parts = _read_json(path, _WEIGHTS_INDEX).get("weight_map")
        if not isinstance(parts, dict):
            raise InvalidModelError(f"{_WEIGHTS_INDEX} has no weight_map.")
        if lost := set(map(str, parts.values())) - set(names):
            raise InvalidModelError(f"The checkpoint has lost its file {min(lost)}.")
        return sorted(set(map(str, parts.values())))
    if not names:
        raise InvalidModelError("The checkpoint has no model.safetensors.")
    return names


def _count_parameters(path: Path) -> int:
    """Count the numbers in a safetensors file, by its header, and check that they are all there.

    The form: https://huggingface.co/docs/safetensors/index#format
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _MAX_HEADER):
                raise ValueError(length)
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        count = sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModelError(f"{path.name} is not a safetensors file.") from error
    if size < 8 + length + end:
        raise InvalidModelError(
            f"{path.name} is cut short: it has {size:,} bytes of {8 + length + end:,}."
        )
    return count


def _read_json(path: Path, name: str) -> dict[str, Any]:
    if not (path / name).is_file():
        raise InvalidModelError(f"The checkpoint has no {name}.")
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidModelError(f"{name} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise InvalidModelError(f"{name} must hold a JSON object.")
    return value
