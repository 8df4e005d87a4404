"""Bringing the weights of a model that was saved by reference into its artifact."""

from __future__ import annotations

import posixpath
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.models import Model

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.manifest import stage
from mlflow_phi3_onnx.artifact.saved import DATA, FLAVOR_NAME, read_saved
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.sources.local import checked_files, download

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

__all__ = ["persist_pretrained_model"]


def persist_pretrained_model(model_uri: str | Path) -> None:
    """Bring the files of a model that was saved with ``save_pretrained=False`` into its artifact.

    They are fetched from the repository, compared with the hashes that were saved, and uploaded;
    the MLmodel file is replaced last, so that the model can be loaded at any moment. Does nothing
    where they are there already.

    Args:
        model_uri: Where the model is: a local path, or a URI of MLflow's that can be written to.

    Raises:
        InvalidModelError: If a file is not the one that was saved.
        InvalidRequestError: If what is there cannot be changed, as a registered version.
        SourceError: If the files cannot be fetched.
        mlflow.exceptions.MlflowException: If there is no such model, or it has not this flavor.
    """
    root, name = mlflow_compat.get_root_uri_and_artifact_path(str(model_uri))
    store = mlflow_compat.get_artifact_repository(root)
    with tempfile.TemporaryDirectory() as work:
        local = download(str(model_uri), work)
        saved = read_saved(local)
        if not saved.by_reference:
            return
        folder = checked_files(saved, "hash")
        files = {file: folder / file for file in saved.flavor["files"]}
        staged = Path(work) / "staged"
        stage(files, staged, link=True, outside=staged)
        _upload(store, staged, posixpath.join(name, DATA))
        model = Model.load(str(local))
        for flavor in (FLAVOR_NAME, "python_function"):
            model.flavors[flavor]["data"] = DATA
        del model.flavors[FLAVOR_NAME]["reference"]
        sizes = (facts["size"] for facts in saved.flavor["files"].values())
        model.model_size_bytes = (model.model_size_bytes or 0) + sum(sizes)
        target = local / mlflow_compat.MLMODEL_FILE_NAME
        model.save(str(target))
        store.log_artifact(str(target), name)


def _upload(store: ArtifactRepository, folder: Path, name: str) -> None:
    try:
        store.log_artifacts(str(folder), name)
    except ValueError as error:  # as MLflow refuses models:/<name>/<version>
        raise InvalidRequestError(
            "A registered version cannot be changed. Give the logged model that it was registered"
            " from, models:/m-..., and register that again.",
            param="model_uri",
        ) from error
