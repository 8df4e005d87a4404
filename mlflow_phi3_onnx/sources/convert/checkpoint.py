"""Checkpoints of transformers: written from models that are in memory, and read from disk.

The classes of transformers are known by name, so that it is not imported here.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.safetensors import read_header
from mlflow_phi3_onnx.core.bounds import MAX_LISTING_BYTES
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.files import list_visible, read_json_object
from mlflow_phi3_onnx.errors import ConversionError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.sources.layout import CHECKPOINT_CONFIG, REPO_ID, WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "GENERATION_FILE",
    "TOKENIZER_FILE",
    "Checkpoint",
    "generator_parts",
    "is_of_transformers",
    "is_pipeline",
    "read_checkpoint",
    "write_checkpoint",
]

_logger = logging.getLogger(__name__)

GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"

_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "tekken.json")
_WEIGHTS_INDEX = "model.safetensors.index.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


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


def is_of_transformers(model: Any) -> bool:
    """Whether an object is a pipeline or a model of transformers."""
    return is_pipeline(model) or _is_a(model, "PreTrainedModel")


def is_pipeline(model: Any) -> bool:
    """Whether an object is a pipeline of transformers."""
    return _is_a(model, "Pipeline")


def generator_parts(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Return a model that generates text, and its tokenizer.

    Args:
        model: A text-generation pipeline, or a model.
        tokenizer: A model's tokenizer, or a processor that has one; None for a pipeline's own.

    Raises:
        InvalidRequestError: If the objects are not for text generation, or the tokenizer is
            missing or one too many.
    """
    if is_pipeline(model):
        if model.task != "text-generation":
            raise InvalidRequestError(
                f"model must be a text-generation pipeline; this one's task is {model.task}.",
                param="model",
            )
        if tokenizer is not None:
            raise InvalidRequestError(
                "tokenizer is for a model alone; a pipeline has its own.", param="tokenizer"
            )
        model, tokenizer = model.model, model.tokenizer
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not _is_a(tokenizer, "PreTrainedTokenizerBase"):
        got = "none" if tokenizer is None else describe_kind(tokenizer)
        raise InvalidRequestError(
            f"A model needs tokenizer=, a tokenizer of transformers or a processor; got {got}.",
            param="tokenizer",
        )
    if not (_is_a(model, "PreTrainedModel") and model.can_generate()):
        raise InvalidRequestError(
            "model must be one that generates text, such as AutoModelForCausalLM gives; got"
            f" {describe_kind(model)}.",
            param="model",
        )
    return model, tokenizer


def write_checkpoint(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Write what :func:`generator_parts` takes to a folder; return its origin for the MLmodel file.

    Raises:
        InvalidRequestError: If the objects are not for text generation, or quantized already.
        ConversionError: If transformers cannot write them.
    """
    kind, given = "transformers_model", model
    model, tokenizer = generator_parts(given, tokenizer)
    if is_pipeline(given):
        kind = "transformers_pipeline"
        _warn_of_arguments(given)
    if getattr(model.config, "quantization_config", None):
        raise InvalidRequestError(
            "The model is quantized already. Load it without quantization, and choose a precision.",
            param="model",
        )
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:
        raise ConversionError(
            f"transformers cannot save this model ({type(error).__name__}), so it cannot be"
            " converted."
        ) from error
    return {"kind": kind, **_loaded_from(model)}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's headers and check that it is whole, without reading its weights.

    Args:
        path: The folder with ``config.json``, ``model.safetensors`` and the tokenizer.

    Raises:
        InvalidModelError: If something is missing or cut short, or it is quantized already.
    """
    # transformers may read any of the files, and would wait for a pipe.
    if odd := [name for name in list_visible(path, 0) if _is_no_file(path / name)]:
        raise InvalidModelError(f"{odd[0]} of the checkpoint is no file. Remove it.")
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


def _is_no_file(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _is_a(value: Any, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "transformers"
        for base in type(value).__mro__
    )


def _warn_of_arguments(pipeline: Any) -> None:
    own: dict[str, Any] = getattr(pipeline, "_generate_kwargs", None) or {}
    if given := sorted(name for name in own if own[name] is not None):
        _logger.warning(
            "The pipeline was made with %s: only the model's own generation_config is carried over."
            " Give the others in model_config.",
            ", ".join(given),
        )


def _loaded_from(model: Any) -> dict[str, Any]:
    """Name the repository that the model was loaded from, where it was one: never a local path."""
    name, commit = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if isinstance(commit, str) and _COMMIT.fullmatch(commit) and REPO_ID.fullmatch(name):
        return {"loaded_from": {"repo_id": name, "revision": commit}}
    return {}


def _weights(path: Path) -> list[str]:
    """Name the weights files that there must be, and are."""
    names = sorted(file.name for file in path.iterdir() if WEIGHTS.fullmatch(file.name))
    if (path / _WEIGHTS_INDEX).is_file():
        parts = read_json_object(path / _WEIGHTS_INDEX, most=MAX_LISTING_BYTES).get("weight_map")
        if not isinstance(parts, dict):
            raise InvalidModelError(f"{_WEIGHTS_INDEX} has no weight_map.")
        needed = set(map(str, parts.values()))
        if lost := needed.difference(names):
            raise InvalidModelError(f"The checkpoint has lost its file {min(lost)}.")
        return sorted(needed)
    if not names:
        raise InvalidModelError("The checkpoint has no model.safetensors.")
    return names
