"""The one door of this room: what a user gave, to a checked model folder and its origin."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.folder import ModelFolder, read_folder
from mlflow_phi3_onnx.errors import InvalidRequestError, SourceNotFoundError
from mlflow_phi3_onnx.sources.layout import check_subfolder, choose
from mlflow_phi3_onnx.sources.local import list_files

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["ResolvedSource", "resolve"]


@dataclass(frozen=True)
class ResolvedSource:
    """A model that can be saved.

    Attributes:
        folder: The model folder, read and found whole.
        origin: Where it came from, as plain data for the MLmodel file. It names no local path.
    """

    folder: ModelFolder
    origin: Mapping[str, Any]


@contextmanager
def resolve(model: str | Path, *, subfolder: str | None = None) -> Generator[ResolvedSource]:
    """Make a model folder of what the user holds.

    What had to be made for it lasts as long as the context.

    Args:
        model: The path of a model folder, or of a folder with several.
        subfolder: The folder inside it that holds the model.

    Raises:
        InvalidRequestError: If an argument is not what it may be.
        SourceNotFoundError: If there is no such folder.
        SourceError: If there are several models and no subfolder was given.
        InvalidModelError: If there is no whole model.
    """
    inside = check_subfolder(subfolder)
    if not isinstance(model, str | Path):
        raise InvalidRequestError(
            f"model must be the path of a model folder; got a {type(model).__name__}.",
            param="model",
        )
    path = Path(model)
    if not path.is_dir():
        kind = "a file" if path.is_file() else "nothing"
        raise SourceNotFoundError(
            f"model must be the path of a model folder; there is {kind} at the path given.",
            param="model",
        )
    part = choose(list_files(path), subfolder=inside, convert=False, place="The folder")
    origin = {"kind": "folder"}
    if part.subfolder:
        origin["subfolder"] = part.subfolder
    yield ResolvedSource(read_folder(path / part.subfolder), origin)
