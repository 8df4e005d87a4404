"""A model that this flavor has saved, as its MLmodel file describes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.bundle import Bundle, Variant, bundle_of_folder
from mlflow_phi3_onnx.artifact.folder import CONFIG_FILE, ModelFolder, read_folder
from mlflow_phi3_onnx.artifact.lora.adapters import ADAPTERS
from mlflow_phi3_onnx.artifact.manifest import Verify, check_files
from mlflow_phi3_onnx.core.checks import allows, integer, one_of, string
from mlflow_phi3_onnx.core.document import Document
from mlflow_phi3_onnx.core.files import inside, read_yaml_object
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, Task
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.runtime.providers import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.artifact.manifest import Manifest

__all__ = [
    "DATA",
    "FLAVOR_NAME",
    "MLMODEL_FILE",
    "SCHEMA_VERSION",
    "Reference",
    "SavedModel",
    "read_saved",
]

FLAVOR_NAME = "mlflow_phi3_onnx"

MLMODEL_FILE = "MLmodel"
"""The file in which MLflow describes a model."""

DATA = "model"
"""The folder in the artifact that holds the model's files."""

SCHEMA_VERSION = 2
"""The version of what the flavor writes into the MLmodel file.

1: one model folder, its files and its source. 2: variants, weights by reference, and what a reader
needs to know of the model: parameters, precision, execution providers, the template's hash.
"""

_PROVIDER = one_of(*PROVIDERS)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """Where the weights are that are not in the artifact.

    Attributes:
        repo_id: The repository on the hub.
        revision: The commit.
        subfolder: The folder in the repository, ``""`` for the top.
    """

    repo_id: str
    revision: str
    subfolder: str


@dataclass(frozen=True)
class SavedModel:
    """A saved model; nothing but its MLmodel file has been read.

    Attributes:
        path: The artifact: the folder with the MLmodel file.
        schema_version: The layout of the flavor's section.
        task: What the model was saved for.
        files: Size and SHA-256 of each file of its data, by name.
        files_at: The folder of its files, or the repository that they are in.
        variants: The folder and the execution provider of each form, by name; none for one form.
        adapters: Path in the artifact, size and SHA-256 of each adapter, by name.
        source: Where it came from.
        runtime_version: The onnxruntime-genai that it was saved with.
        config: The saved ``model_config``.
        model_id: Its id in MLflow, where it was logged there.
    """

    path: Path
    schema_version: int
    task: Task
    files: Manifest
    files_at: Path | Reference
    variants: Mapping[str, tuple[str, str]]
    adapters: Manifest
    source: Mapping[str, Any]
    runtime_version: str
    config: Mapping[str, Any]
    model_id: str | None

    @property
    def by_reference(self) -> bool:
        """Whether its files are in a repository, and not here."""
        return isinstance(self.files_at, Reference)

    @property
    def adapter_files(self) -> dict[str, Path]:
        """The files of its adapters, by name."""
        return {name: self.path / facts["path"] for name, facts in self.adapters.items()}

    def check(self, folder: Path, level: Verify) -> None:
        """Check its files, in its own folder or in that of a cache, and its adapters.

        Raises:
            InvalidModelError: If one is not as it was saved.
        """
        check_files(folder, self.files, level, own=not self.by_reference)
        adapters = {
            facts["path"].removeprefix(f"{ADAPTERS}/"): facts for facts in self.adapters.values()
        }
        check_files(self.path / ADAPTERS, adapters, level)

    def bundle(self, folder: Path) -> Bundle:
        """Read its model folders.

        Args:
            folder: Where its files are.

        Raises:
            InvalidModelError: If a model folder is not whole.
        """
        if not self.variants:
            return bundle_of_folder(folder)
        variants = tuple(
            Variant(name, place, _read_variant(folder, place), provider)
            for name, (place, provider) in self.variants.items()
        )
        return Bundle({name: folder / name for name in self.files}, variants)


def read_saved(path: Path) -> SavedModel:
    """Read what a saved model says of itself.

    Args:
        path: The folder with the MLmodel file.

    Raises:
        InvalidModelError: If the MLmodel file is missing, damaged or of a later layout, has not
            this flavor, names what is outside the model, or says how the model is to be verified,
            which is not its business.
    """
    path = path.absolute()
    file = path / MLMODEL_FILE
    if not file.is_file() and (path / CONFIG_FILE).is_file():
        raise InvalidModelError(
            f"The path is that of a model folder (it has {CONFIG_FILE} and no {file.name}), not of"
            " a saved model. Load it with GenAIModel(path), or log it with log_model first."
        )
    if not file.is_file():
        what = "is a file" if path.is_file() else f"has no {file.name} file"
        raise InvalidModelError(
            f"{path.name} is not the folder of a saved model: it {what}. Give the folder that"
            " save_model wrote, or the model_uri that log_model returned."
        )
    document = Document(read_yaml_object(file), file.name)
    flavors = document.section("flavors")
    if FLAVOR_NAME not in flavors.values:
        raise InvalidModelError(
            f'The model does not have the "{FLAVOR_NAME}" flavor, but'
            f" {', '.join(sorted(flavors.values)) or 'none'}. Load it with the flavor that it has,"
            " or log it again with this one.",
            error_code="RESOURCE_DOES_NOT_EXIST",
        )
    section = flavors.section(FLAVOR_NAME)
    version = section.read("schema_version", integer(1))
    if version > SCHEMA_VERSION:
        raise InvalidModelError(
            f"The model was saved by a newer mlflow_phi3_onnx (layout {version};"
            f" this one reads up to {SCHEMA_VERSION}). Upgrade the package."
        )
    return SavedModel(
        path=path,
        schema_version=version,
        task=section.read("task", one_of(*ALL_TASKS)),
        files=_read_files(section),
        files_at=_read_place(path, section),
        variants=_read_variants(section),
        adapters=_read_adapters(path, section),
        source=section.section("source", needed=False).values,
        runtime_version=section.read("onnxruntime_genai_version", string, ""),
        config=_read_config(flavors.section("python_function", needed=False)),
        model_id=document.read("model_id", string) if document.values.get("model_id") else None,
    )


@allows("a SHA-256 in hexadecimal")
def _sha256(value: Any) -> str:
    if not _SHA256.fullmatch(string(value)):
        raise ValueError
    return value


def _facts(file: Document) -> dict[str, Any]:
    return {"size": file.read("size", integer(0, bits=64)), "sha256": file.read("sha256", _sha256)}


def _read_files(section: Document) -> Manifest:
    listed = section.sections("files")
    for name in listed:
        inside(Path(), name, "The MLmodel file lists a file outside the model")
    return {name: _facts(file) for name, file in listed.items()}


def _read_place(path: Path, section: Document) -> Path | Reference:
    if "data" in section.values:
        refusal = "The MLmodel file names a data folder outside the model"
        return inside(path, section.values["data"], refusal, links=False)
    reference = section.section("reference")
    names = ("repo_id", "revision", "subfolder")
    return Reference(*(reference.read(name, string) for name in names))


def _read_variants(section: Document) -> dict[str, tuple[str, str]]:
    refusal = "The MLmodel file names a folder outside the model"
    variants = section.sections("variants", needed=False)
    return {
        name: (
            inside(Path(), variant.values.get("folder"), refusal).as_posix(),
            variant.read("execution_provider", _PROVIDER),
        )
        for name, variant in variants.items()
    }


def _read_adapters(path: Path, section: Document) -> Manifest:
    refusal = "The MLmodel file lists an adapter outside the model"
    found: Manifest = {}
    for name, adapter in section.sections("adapters", needed=False).items():
        place = adapter.values.get("path", "")
        inside(path, place, refusal, links=False)
        if not place.startswith(f"{ADAPTERS}/"):
            raise adapter.refusal("path", f"must be in the folder {ADAPTERS}")
        found[name] = {"path": place, **_facts(adapter)}
    return found


def _read_config(pyfunc: Document) -> Mapping[str, Any]:
    if pyfunc.values.get("config") is None:
        return {}
    config = pyfunc.section("config")
    if config.values.get("verify") is not None:
        raise config.refusal(
            "verify",
            "is set, but how closely a model is checked is for whoever loads it to say: take it out"
            " of the file",
        )
    return config.values


def _read_variant(folder: Path, place: str) -> ModelFolder:
    refusal = "The MLmodel file names a folder outside the model"
    path = inside(folder, place, refusal, links=False)
    own = (path / "tokenizer.json").is_file()
    return read_folder(path, None if own else folder)
