"""Bringing what is at a path, a URI or in a repository onto this machine."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.files import inside, show_path
from mlflow_phi3_onnx.errors import InvalidRequestError, SourceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow_phi3_onnx.artifact.manifest import Verify
    from mlflow_phi3_onnx.artifact.saved import Reference, SavedModel

__all__ = [
    "EXPECTED_PLACES",
    "MIRROR_VARIABLE",
    "checked_files",
    "download",
    "existing",
    "local_copy",
]

MIRROR_VARIABLE = "MLFLOW_PHI3_ONNX_MIRROR"
"""Names a folder that holds repositories, as ``<owner>/<name>``, to be read instead of the hub."""

EXPECTED_PLACES = (
    "models:/<name>/<version>, models:/<name>@<alias>, models:/<model id>, runs:/<run id>/<path> or"
    " the folder of a saved model"
)
"""Where a saved model can be, in words."""

_URI = re.compile(r"(models|runs):/")
_SCHEME = re.compile(r"\w{2,}:")  # one letter is a drive of Windows
_NOT_FOUND = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}


def existing(path: str | Path) -> Path | None:
    """Return a path where there is something, else None; some texts can be no path at all."""
    try:
        return Path(path) if path and Path(path).exists() else None
    except (OSError, ValueError):
        return None


@contextmanager
def local_copy(
    place: str | Path, *, expected: str, param: str = "model"
) -> Generator[tuple[Path, str | None]]:
    """Bring a folder onto this machine, unless it is there; a download lasts for the context.

    Args:
        place: A path, or a ``models:/`` or ``runs:/`` URI. What is there as a path is a path.
        expected: What there should be, for the error.
        param: The argument that the place came in.

    Yields:
        The folder, and the URI that it came from, with the version that an alias stands for now;
        None for a path.

    Raises:
        SourceNotFoundError: If there is nothing, or a file.
        mlflow.exceptions.MlflowException: If MLflow fails otherwise.
    """
    path, uri = existing(place), None
    with tempfile.TemporaryDirectory(
        prefix="mlflow-phi3-onnx-", ignore_cleanup_errors=True
    ) as work:
        if path is None and isinstance(place, str) and _URI.match(place):
            with _told_what_is_missing(place, param):
                uri, is_here = _pinned(place)
            path = download(uri, None if is_here else work, param=param)
        if path is None or not path.is_dir():
            kind = "nothing" if path is None else "a file"
            at = f"the path {show_path(place)}" if uri is None else uri
            raise SourceNotFoundError(
                f"{param}: there is {kind} at {at}. It must be {expected}.", param=param
            )
        yield path, uri


def download(place: str | Path, folder: str | Path | None, *, param: str = "model") -> Path:
    """Bring what is at any URI that MLflow reads onto this machine.

    Args:
        place: The URI, or a local path.
        folder: Where to; None leaves what is on this machine where it is, and puts the rest into a
            folder of MLflow's that stays.
        param: The argument that the place came in.

    Raises:
        InvalidRequestError: If it is neither a path nor a URI.
        SourceNotFoundError: If there is nothing at the URI, or it is none.
        mlflow.exceptions.MlflowException: If MLflow fails otherwise.
    """
    if not isinstance(place, str | Path) or not str(place):
        came = "an empty string" if place == "" else describe_kind(place)
        raise InvalidRequestError(f"{param} must be a path or a URI; got {came}.", param=param)
    with _told_what_is_missing(str(place), param):
        return Path(download_artifacts(artifact_uri=str(place), dst_path=folder and str(folder)))


def checked_files(saved: SavedModel, level: Verify) -> Path:
    """Return the folder with a saved model's files, which are fetched where they are elsewhere.

    Args:
        saved: The model.
        level: How closely its files and adapters are compared with what was saved.

    Raises:
        InvalidModelError: If one is not as it was saved, or lies outside the model.
        SourceError: If they are in a repository and cannot be fetched.
    """
    files = saved.files_at
    folder = files if isinstance(files, Path) else _in_repository(files)
    saved.check(folder, level)
    return folder


def _in_repository(reference: Reference) -> Path:
    repo_id, subfolder = reference.repo_id, reference.subfolder
    if mirror := os.environ.get(MIRROR_VARIABLE):
        name = f"{repo_id}/{subfolder}" if subfolder else repo_id
        refusal = f"The folder that {MIRROR_VARIABLE} names has no folder {name}"
        folder = inside(Path(mirror), name, refusal, SourceNotFoundError, links=False)
        if not folder.is_dir():
            raise SourceNotFoundError(f"{refusal}.")
        return folder
    from mlflow_phi3_onnx.sources.hub import fetch

    snapshot = fetch(repo_id, revision=reference.revision, subfolder=subfolder, convert=False)
    return snapshot.root / snapshot.part.subfolder


def _pinned(uri: str) -> tuple[str, bool]:
    """Put the version that an alias or a stage stands for now; tell whether the files are here."""
    if not uri.startswith("models:"):
        return uri, False
    parts = mlflow_compat.get_model_name_and_version(MlflowClient(), uri)
    pinned = "models:/" + "/".join(map(str, parts))
    store = mlflow_compat.ModelsArtifactRepository(pinned).repo
    return pinned, isinstance(store, mlflow_compat.LocalArtifactRepository)


@contextmanager
def _told_what_is_missing(place: str, param: str) -> Generator[None]:
    """Say what was expected where MLflow finds nothing."""
    try:
        yield
    except MlflowException as error:
        # What is no URI at all has the same code as failures inside MLflow.
        if error.error_code not in _NOT_FOUND and "Not a proper" not in error.message:
            raise
        nothing = f"MLflow has no model at {place}"
        if _URI.match(place):
            nothing += f" in {_store(place)}. MLFLOW_TRACKING_URI chooses another"
        elif not _SCHEME.match(place):
            nothing = f"there is nothing at the path {show_path(place)}"
        raise SourceNotFoundError(
            f"{param}: {nothing}. Expected {EXPECTED_PLACES}.", param=param
        ) from error


def _store(uri: str) -> str:
    """Say where MLflow has looked; of most stores the kind only, as an address may hold a key."""
    of_models = uri.startswith("models:")
    parts = urlsplit(mlflow.get_registry_uri() if of_models else mlflow.get_tracking_uri())
    if parts.scheme not in ("http", "https"):
        return f"its {parts.scheme or 'file'} store"
    return f"the store {parts.scheme}://{parts.netloc.rpartition('@')[2]}"
