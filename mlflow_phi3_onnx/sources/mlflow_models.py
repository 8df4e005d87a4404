"""Models that MLflow holds: of this flavor, of ``mlflow.transformers``, or files of a run."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow.models import Model

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.files import inside
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "TRANSFORMERS",
    "Held",
    "assemble_checkpoint",
    "check_transformers",
    "read_held",
]

_logger = logging.getLogger(__name__)

TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Held:
    """A model that MLflow holds, on this machine.

    Attributes:
        path: Its folder, with the MLmodel file.
        flavors: The sections of the MLmodel file, by flavor.
        metadata: The metadata of the MLmodel file.
        origin: Where it came from, for another MLmodel file.
    """

    path: Path
    flavors: Mapping[str, Any]
    metadata: Mapping[str, Any]
    origin: Mapping[str, Any]


def read_held(path: Path, uri: str | None = None) -> Held | None:
    """Read the MLmodel file of a folder; None where there is none.

    Raises:
        InvalidModelError: If the file cannot be read.
    """
    if not (path / mlflow_compat.MLMODEL_FILE_NAME).is_file():
        return None
    try:
        model = Model.load(str(path))
    except Exception as error:
        raise InvalidModelError("The MLmodel file cannot be read.") from error
    origin: dict[str, Any] = {"kind": "mlflow_model"}
    if uri is not None:
        origin["uri"] = uri
    if model.model_id is not None:
        origin["model_id"] = model.model_id
    return Held(path, model.flavors, model.metadata or {}, origin)


def assemble_checkpoint(held: Held, folder: Path) -> None:
    """Put model and tokenizer of an ``mlflow.transformers`` model into one folder, by links.

    Args:
        held: The model; its weights are among its files.
        folder: An empty folder.

    Raises:
        InvalidModelError: If the MLmodel file leads out of the model's own folder.
    """
    for part in (held.flavors[TRANSFORMERS]["model_binary"], "components/tokenizer"):
        refusal = "The MLmodel file names a folder outside the model"
        folder_of_part = inside(held.path, part, refusal, links=False)
        for file in sorted(folder_of_part.glob("*")):
            if file.is_file():
                _link(file.resolve(), folder / file.name)


def check_transformers(held: Held) -> None:
    """Check that an ``mlflow.transformers`` model is one that can be converted as it is.

    What it was saved with and has no place in this flavor is named in a warning.

    Raises:
        InvalidModelError: If it is not for text generation, or is more than its weights.
    """
    flavor = held.flavors[TRANSFORMERS]
    task = flavor.get("task")
    if task != "text-generation":
        raise InvalidModelError(
            f"The MLflow model is a pipeline for {task}; only text-generation can be converted."
        )
    if flavor.get("peft_adaptor") or flavor.get("local_base_model_path"):
        raise InvalidModelError(
            "The MLflow model is an adapter beside its base model. Merge them with"
            " model.merge_and_unload(), and give the merged model."
        )
    if held.metadata.get("prompt_template"):
        raise InvalidModelError(
            "The MLflow model has a prompt_template, which would be lost. Put it into the chat"
            " template of its tokenizer, and give the pipeline."
        )
    config = held.flavors.get("python_function", {}).get("config") or {}
    if config:
        _logger.warning(
            "The MLflow model was saved with a model_config (%s), which is not carried over: give"
            " what you need of it.",
            ", ".join(sorted(config)),
        )


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
