"""A transformers checkpoint on disk: whether it is whole, and what it says of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.safetensors import read_header
from mlflow_phi3_onnx.core.files import read_json_object
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.sources.layout import CHECKPOINT_CONFIG, WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GENERATION_FILE", "TOKENIZER_FILE", "Checkpoint", "read_checkpoint"]

GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"

_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "tekken.json")
_WEIGHTS_INDEX = "model.safetensors.index.json"


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
    # transformers writes Infinity into both, as time_step_limit of Mamba, and Python reads them.
    config = read_json_object(path / CHECKPOINT_CONFIG, infinite=True)
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
    file = path / GENERATION_FILE
    generation = read_json_object(file, infinite=True) if file.is_file() else {}
    layers = config.get("num_hidden_layers")
    return Checkpoint(
        path=path,
        architecture=str(architectures[0]),
        layers=layers if isinstance(layers, int) else 0,
        parameters=sum(
            math.prod(tensor.shape)
            for name in _weights(path)
            for tensor in read_header(path / name).values()
        ),
        generation=generation,
    )


def _weights(path: Path) -> list[str]:
    """Name the weights files that there must be, and are."""
    names = sorted(file.name for file in path.iterdir() if WEIGHTS.fullmatch(file.name))
    if (path / _WEIGHTS_INDEX).is_file():
        parts = read_json_object(path / _WEIGHTS_INDEX).get("weight_map")
        if not isinstance(parts, dict):
            raise InvalidModelError(f"{_WEIGHTS_INDEX} has no weight_map.")
        if lost := set(map(str, parts.values())) - set(names):
            raise InvalidModelError(f"The checkpoint has lost its file {min(lost)}.")
        return sorted(set(map(str, parts.values())))
    if not names:
        raise InvalidModelError("The checkpoint has no model.safetensors.")
    return names
