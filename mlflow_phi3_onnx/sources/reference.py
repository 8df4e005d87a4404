"""Models whose weights are in a repository, and not in their artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx.artifact.saved import SavedModel

__all__ = ["locate_files"]


def locate_files(saved: SavedModel) -> Path:
    """Return the folder with a saved model's files; where they are in a repository, fetch them.

    Raises:
        InvalidModelError: If the MLmodel file names a folder outside the model.
        SourceError: If they cannot be fetched.
    """
    if not saved.by_reference:
        return saved.data
    from mlflow_phi3_onnx.sources.hub import fetch

    source = saved.flavor["source"]
    snapshot = fetch(
        source["repo_id"],
        revision=source["revision"],
        subfolder=source.get("subfolder", ""),
        convert=False,
    )
    return snapshot.path
