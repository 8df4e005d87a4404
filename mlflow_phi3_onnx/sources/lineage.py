"""Tags that tell in MLflow what a model was made of, and on the other side what was made of it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["describe_version", "link_back", "tags_of"]

_logger = logging.getLogger(__name__)

_PREFIX = "mlflow_phi3_onnx."
_VERSION_URI = re.compile(r"models:/([^/]+)/(\d+)")


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
    return {f"{_PREFIX}{name}": value for name, value in facts.items() if value is not None}


def link_back(origin: Mapping[str, Any], uri: str) -> None:
    """Tag a model that MLflow holds with what it was converted to, by precision.

    The new model is logged by now, so a store that refuses the tag is only warned of.

    Args:
        origin: Where the new model came from.
        uri: Where the new model is.
    """
    if "conversion" not in origin:
        return
    name = _PREFIX + origin["conversion"]["precision"]
    client = MlflowClient()
    try:
        if "model_id" in origin:
            client.set_logged_model_tags(origin["model_id"], {name: uri})
        if version := _VERSION_URI.fullmatch(origin.get("uri", "")):
            client.set_model_version_tag(version[1], version[2], name, uri)
    except MlflowException as error:
        _logger.warning("MLflow refused to tag the model's source (%s).", error.error_code)


def describe_version(name: str, version: int | str, text: str) -> None:
    """Give a registered version a description, unless the store refuses."""
    try:
        MlflowClient().update_model_version(name, str(version), text)
    except MlflowException as error:
        _logger.warning("MLflow refused to describe the registered version (%s).", error.error_code)
