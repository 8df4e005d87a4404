"""What is at a path or a URI, on this machine."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.errors import SourceNotFoundError
from mlflow_phi3_onnx.sources.local import existing

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["LocalCopy", "download", "local_copy"]

_URI = re.compile(r"(models|runs):/")
_NOT_FOUND = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}


@dataclass(frozen=True)
class LocalCopy:
    """A folder on this machine.

    Attributes:
        path: The folder.
        uri: Where it came from, with the version that an alias stands for now; None for a path.
    """

    path: Path
    uri: str | None


@contextmanager
def local_copy(place: str | Path, *, expected: str, param: str = "model") -> Generator[LocalCopy]:
    """Bring a folder onto this machine, unless it is there; a download lasts for the context.

    Args:
        place: A path, or a ``models:/`` or ``runs:/`` URI. What is there as a path is a path.
        expected: What there should be, for the error.
        param: The argument that the place came in.

    Raises:
        SourceNotFoundError: If there is nothing, or a file.
        mlflow.exceptions.MlflowException: If MLflow fails otherwise.
    """
    path, uri = existing(place), None
    with tempfile.TemporaryDirectory(
        prefix="mlflow-phi3-onnx-", ignore_cleanup_errors=True
    ) as work:
        if path is None and isinstance(place, str) and _URI.match(place):
            uri = _pinned(place)
            path = download(uri, None if _is_here(uri) else work)
        if path is None or not path.is_dir():
            kind = "nothing" if path is None else "a file"
            at = "the path given" if uri is None else uri
            raise SourceNotFoundError(
                f"{param} must be {expected}; there is {kind} at {at}.", param=param
            )
        yield LocalCopy(path, uri)


def download(uri: str, folder: str | Path | None) -> Path:
    """Bring what is at any URI that MLflow reads onto this machine.

    Args:
        uri: The URI, or a local path.
        folder: Where to; None leaves what is on this machine where it is, and puts the rest into a
            folder of MLflow's that stays.

    Raises:
        SourceNotFoundError: If there is nothing at the URI, or it is none.
        mlflow.exceptions.MlflowException: If MLflow fails otherwise.
    """
    try:
        return Path(download_artifacts(artifact_uri=uri, dst_path=folder and str(folder)))
    except MlflowException as error:
        raise _not_found(error, uri) from error


def _pinned(uri: str) -> str:
    """Return a URI with the version that an alias or a stage stands for now."""
    if not uri.startswith("models:"):
        return uri
    try:
        parts = mlflow_compat.get_model_name_and_version(MlflowClient(), uri)
    except MlflowException as error:
        raise _not_found(error, uri) from error
    return "models:/" + "/".join(map(str, parts))


def _is_here(uri: str) -> bool:
    if not uri.startswith("models:"):
        return False
    try:
        store = mlflow_compat.ModelsArtifactRepository(uri).repo
    except MlflowException as error:
        raise _not_found(error, uri) from error
    return isinstance(store, mlflow_compat.LocalArtifactRepository)


def _not_found(error: MlflowException, uri: str) -> MlflowException:
    # What is no URI at all has the same code as failures inside MLflow.
    if error.error_code not in _NOT_FOUND and "Not a proper" not in error.message:
        return error
    return SourceNotFoundError(
        f"MLflow has no model at {uri}. Expected models:/<name>/<version>,"
        " models:/<name>@<alias>, models:/<model id> or runs:/<run id>/<path>.",
        param="model",
    )
