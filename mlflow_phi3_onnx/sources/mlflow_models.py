"""Models that MLflow holds: read as sources, and tagged with what became of them."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.saved import MLMODEL_FILE
from mlflow_phi3_onnx.core.files import inside, link_or_copy, read_yaml_object
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "TRANSFORMERS",
    "assemble_checkpoint",
    "check_transformers",
    "describe_version",
    "link_back",
    "read_mlmodel",
    "tags_of",
]

_logger = logging.getLogger(__name__)

TRANSFORMERS = "transformers"

_TAG_PREFIX = "mlflow_phi3_onnx."
_VERSION_URI = re.compile(r"models:/([^/]+)/(\d+)")


def read_mlmodel(folder: Path) -> Model | None:
    """Read the MLmodel file of a folder; None where there is none.

    Raises:
        InvalidModelError: If the file cannot be read.
    """
    file = folder / MLMODEL_FILE
    if not file.is_file():
        return None
    content = read_yaml_object(file)
    try:
        return Model.from_dict(content)
    except Exception as error:
        raise InvalidModelError("The MLmodel file cannot be read.") from error


def assemble_checkpoint(path: Path, model_binary: str, folder: Path) -> None:
    """Put model and tokenizer of an ``mlflow.transformers`` model into one folder, by links.

    Args:
        path: The folder with the MLmodel file; the weights are among its files.
        model_binary: The folder of the weights, as the MLmodel file names it.
        folder: An empty folder.

    Raises:
        InvalidModelError: If the MLmodel file leads out of the model's own folder.
    """
    for part in (model_binary, "components/tokenizer"):
        refusal = "The MLmodel file names a folder outside the model"
        for file in inside(path, part, refusal, links=False).glob("*"):
            if file.is_file():
                target = folder / file.name
                target.unlink(missing_ok=True)
                link_or_copy(file, target)


def check_transformers(model: Model) -> None:
    """Check that an ``mlflow.transformers`` model is one that can be converted as it is.

    What it was saved with and has no place in this flavor is named in a warning.

    Raises:
        InvalidModelError: If it is not for text generation, or is more than its weights.
    """
    flavor = model.flavors[TRANSFORMERS]
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
    if (model.metadata or {}).get("prompt_template"):
        raise InvalidModelError(
            "The MLflow model has a prompt_template, which would be lost. Put it into the chat"
            " template of its tokenizer, and give the pipeline."
        )
    if config := model.flavors.get("python_function", {}).get("config"):
        _logger.warning(
            "The MLflow model was saved with a model_config (%s), which is not carried over: give"
            " what you need of it.",
            ", ".join(sorted(config)),
        )


def tags_of(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags for a model that came from a source, as far as they apply to it."""
    conversion = origin.get("conversion", {})
    uri = origin.get("uri")
    if uri is None and "repo_id" in origin:
        uri = f"hf://{origin['repo_id']}"
    facts = {
        "source_uri": uri,
        "source_revision": origin.get("revision"),
        "precision": conversion.get("precision"),
        "builder": conversion.get("builder"),
    }
    return {f"{_TAG_PREFIX}{name}": value for name, value in facts.items() if value is not None}


def link_back(origin: Mapping[str, Any], uri: str) -> None:
    """Tag a model that MLflow holds with what it was converted to, by precision.

    The new model is logged by now, so a store that refuses the tag is only warned of.

    Args:
        origin: Where the new model came from.
        uri: Where the new model is.
    """
    if "conversion" not in origin:
        return
    name = _TAG_PREFIX + origin["conversion"]["precision"]
    client = MlflowClient()
    try:
        if "model_id" in origin:
            client.set_logged_model_tags(origin["model_id"], {name: uri})
        if version := _VERSION_URI.fullmatch(origin.get("uri", "")):
            client.set_model_version_tag(version[1], version[2], name, uri)
    except MlflowException as error:
        _logger.warning("MLflow refused to tag the model's source (%s).", error.error_code)


def describe_version(name: str, version: int | str, text: str) -> None:
    """Describe a version that ``log_model`` registered, and its model if that has no description.

    A store that refuses is only warned of.
    """
    client = MlflowClient()
    try:
        client.update_model_version(name, str(version), text)
        # MLflow gives a version the logged model's tags, where this one has no place of its own.
        client.delete_model_version_tag(name, str(version), mlflow_compat.DESCRIPTION_TAG)
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, f"{text} Described as of version {version}.")
    except MlflowException as error:
        _logger.warning("MLflow refused to describe the registered version (%s).", error.error_code)
