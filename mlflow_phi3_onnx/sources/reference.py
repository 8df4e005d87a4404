"""Models whose weights are in a repository, and not in their artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.files import inside
from mlflow_phi3_onnx.errors import SourceNotFoundError

if TYPE_CHECKING:
    from mlflow_phi3_onnx.artifact.saved import SavedModel

__all__ = ["MIRROR_VARIABLE", "locate_files"]

MIRROR_VARIABLE = "MLFLOW_PHI3_ONNX_MIRROR"
"""Names a folder that holds repositories, as ``<owner>/<name>``, to be read instead of the hub."""


def locate_files(saved: SavedModel) -> Path:
    """Return the folder with a saved model's files; where they are in a repository, fetch them.

    What comes from a repository has not been compared with what was saved.

    Raises:
        InvalidModelError: If the MLmodel file names a folder outside the model.
        SourceError: If they cannot be fetched.
    """
    reference = saved.reference
    if saved.data is not None or reference is None:
        return saved.path if saved.data is None else saved.data
    if mirror := os.environ.get(MIRROR_VARIABLE):
        return _in_mirror(Path(mirror), reference.repo_id, reference.subfolder)
    from mlflow_phi3_onnx.sources.hub import fetch

    return fetch(
        reference.repo_id,
        revision=reference.revision,
        subfolder=reference.subfolder,
        convert=False,
    ).path


def _in_mirror(mirror: Path, repo_id: str, subfolder: str) -> Path:
    name = f"{repo_id}/{subfolder}" if subfolder else repo_id
    refusal = f"The folder that {MIRROR_VARIABLE} names has no folder {name}"
    folder = inside(mirror, name, refusal, SourceNotFoundError, links=False)
    if not folder.is_dir():
        raise SourceNotFoundError(f"{refusal}.")
    return folder
