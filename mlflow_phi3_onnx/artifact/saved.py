"""A model that this flavor has saved, as its MLmodel file describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.files import check_sizes
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FLAVOR_NAME", "SCHEMA_VERSION", "SavedModel", "read_saved"]

FLAVOR_NAME = "mlflow_phi3_onnx"

SCHEMA_VERSION = 1
"""The version of what the flavor writes into the MLmodel file."""


@dataclass(frozen=True)
class SavedModel:
    """A saved model whose files are there, each with its size.

    Attributes:
        folder: The model folder inside the artifact.
        flavor: The flavor's section of the MLmodel file.
        adapters: The files of its adapters, by name.
    """

    folder: Path
    flavor: Mapping[str, Any]
    adapters: Mapping[str, Path]


def read_saved(path: Path) -> SavedModel:
    """Read what a saved model says of itself, and check its files' sizes.

    Args:
        path: The folder with the MLmodel file.

    Raises:
        InvalidModelError: If a file is not as it was saved, or the model is of a later layout.
        mlflow.exceptions.MlflowException: If it has not this flavor.
    """
    flavor = mlflow_compat.get_flavor_configuration(str(path), FLAVOR_NAME)
    if flavor["schema_version"] > SCHEMA_VERSION:
        raise InvalidModelError(
            f"The model was saved by a newer mlflow_phi3_onnx (layout {flavor['schema_version']};"
            f" this one reads up to {SCHEMA_VERSION}). Upgrade the package."
        )
    folder = path / flavor["data"]
    if path.resolve() not in folder.resolve().parents:
        raise InvalidModelError("The MLmodel file names a data folder outside the model.")
    check_sizes(folder, flavor["files"])
    adapters: Mapping[str, Any] = flavor.get("adapters", {})
    check_sizes(path, {facts["path"]: facts for facts in adapters.values()})
    files = {name: path / facts["path"] for name, facts in adapters.items()}
    return SavedModel(folder, flavor, files)
