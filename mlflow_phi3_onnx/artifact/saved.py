"""A model that this flavor has saved, as its MLmodel file describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.bundle import Bundle, Variant, bundle_of_folder
from mlflow_phi3_onnx.artifact.folder import ModelFolder, read_folder
from mlflow_phi3_onnx.artifact.lora.adapters import ADAPTERS
from mlflow_phi3_onnx.artifact.manifest import Verify, check_files
from mlflow_phi3_onnx.core.files import inside
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["DATA", "FLAVOR_NAME", "SCHEMA_VERSION", "SavedModel", "read_saved"]

FLAVOR_NAME = "mlflow_phi3_onnx"

DATA = "model"
"""The folder in the artifact that holds the model's files."""

SCHEMA_VERSION = 2
"""The version of what the flavor writes into the MLmodel file.

1: one model folder, its files and its source. 2: variants, weights by reference, and what a reader
needs to know of the model: parameters, precision, execution providers, the template's hash.
"""


@dataclass(frozen=True)
class SavedModel:
    """A saved model; nothing but its MLmodel file has been read.

    Attributes:
        path: The artifact: the folder with the MLmodel file.
        flavor: The flavor's section of that file.
    """

    path: Path
    flavor: Mapping[str, Any]

    @property
    def adapters(self) -> dict[str, Path]:
        """The files of its adapters, by name."""
        refusal = "The MLmodel file lists an adapter outside the model"
        return {
            name: inside(self.path, facts["path"], refusal)
            for name, facts in self._adapters.items()
        }

    @property
    def _adapters(self) -> Mapping[str, Mapping[str, Any]]:
        return self.flavor.get("adapters", {})

    @property
    def by_reference(self) -> bool:
        """Whether its files are in a repository, and not here."""
        return "data" not in self.flavor

    @property
    def data(self) -> Path:
        """The folder of its files, where they are here.

        Raises:
            InvalidModelError: If it is not in the artifact.
        """
        refusal = "The MLmodel file names a data folder outside the model"
        return inside(self.path, self.flavor["data"], refusal, links=False)

    def check(self, folder: Path, level: Verify) -> None:
        """Check its files, in its own folder or in that of a cache, and its adapters.

        Raises:
            InvalidModelError: If one is not as it was saved.
        """
        check_files(folder, self.flavor["files"], level, own=not self.by_reference)
        adapters = {
            facts["path"].removeprefix(f"{ADAPTERS}/"): dict(facts)
            for facts in self._adapters.values()
        }
        check_files(self.path / ADAPTERS, adapters, level)

    def bundle(self, folder: Path) -> Bundle:
        """Read its model folders.

        Args:
            folder: Where its files are.

        Raises:
            InvalidModelError: If a model folder is not whole.
        """
        listed: Mapping[str, Mapping[str, str]] = self.flavor.get("variants", {})
        if not listed:
            return bundle_of_folder(folder)
        variants = tuple(
            Variant(name, facts["folder"], self._read(folder, facts), facts["execution_provider"])
            for name, facts in listed.items()
        )
        return Bundle({name: folder / name for name in self.flavor["files"]}, variants)

    def _read(self, folder: Path, facts: Mapping[str, str]) -> ModelFolder:
        refusal = "The MLmodel file names a folder outside the model"
        path = inside(folder, facts["folder"], refusal, links=False)
        own = (path / "tokenizer.json").is_file()
        return read_folder(path, None if own else folder)


def read_saved(path: Path) -> SavedModel:
    """Read what a saved model says of itself.

    Args:
        path: The folder with the MLmodel file.

    Raises:
        InvalidModelError: If the model is of a later layout.
        mlflow.exceptions.MlflowException: If it has not this flavor.
    """
    flavor = mlflow_compat.get_flavor_configuration(str(path), FLAVOR_NAME)
    if flavor["schema_version"] > SCHEMA_VERSION:
        raise InvalidModelError(
            f"The model was saved by a newer mlflow_phi3_onnx (layout {flavor['schema_version']};"
            f" this one reads up to {SCHEMA_VERSION}). Upgrade the package."
        )
    return SavedModel(path, flavor)
