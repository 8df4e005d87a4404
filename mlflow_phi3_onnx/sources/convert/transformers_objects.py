"""Models of transformers that are in memory: written to disk as checkpoints, to be converted.

Their classes are known by name, so that transformers is not imported here.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import ConversionError, InvalidRequestError
from mlflow_phi3_onnx.sources.layout import REPO_ID

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["generator_parts", "is_of_transformers", "is_pipeline", "write_checkpoint"]

_logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


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
        model, tokenizer = _parts_of(model, tokenizer)
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
    """Write a model and its tokenizer to disk.

    Args:
        model: A text-generation pipeline, or a model.
        tokenizer: A model's tokenizer, or a processor that has one; None for a pipeline's own.
        folder: Where to write them.

    Returns:
        The origin, for the MLmodel file.

    Raises:
        InvalidRequestError: If the objects are not for text generation, or the tokenizer is
            missing or one too many.
        ConversionError: If transformers cannot write them.
    """
    kind = "transformers_model"
    given = model
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


def _is_a(value: Any, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "transformers"
        for base in type(value).__mro__
    )


def _parts_of(pipeline: Any, tokenizer: Any) -> tuple[Any, Any]:
    if pipeline.task != "text-generation":
        raise InvalidRequestError(
            f"model must be a text-generation pipeline; this one's task is {pipeline.task}.",
            param="model",
        )
    if tokenizer is not None:
        raise InvalidRequestError(
            "tokenizer is for a model alone; a pipeline has its own.", param="tokenizer"
        )
    return pipeline.model, pipeline.tokenizer


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
