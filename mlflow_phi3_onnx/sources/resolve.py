"""The one door of this room: what a user gave, to a checked model folder and its origin."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.folder import ModelFolder, read_folder
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError, SourceNotFoundError
from mlflow_phi3_onnx.sources.layout import Part, check_subfolder, choose
from mlflow_phi3_onnx.sources.local import list_files

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["ResolvedSource", "resolve"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXPECTED = (
    "model must be the path of a model folder, or the id of a repository on the Hugging Face hub,"
    " such as 'microsoft/Phi-3-mini-4k-instruct-onnx'"
)


@dataclass(frozen=True)
class ResolvedSource:
    """A model that can be saved.

    Attributes:
        folder: The model folder, read and found whole.
        origin: Where it came from, as plain data for the MLmodel file. It names no local path.
        hashes: The SHA-256 that files must have, by name in the folder, where the source tells.
    """

    folder: ModelFolder
    origin: Mapping[str, Any]
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])


@contextmanager
def resolve(
    model: str | Path, *, subfolder: str | None = None, revision: str | None = None
) -> Generator[ResolvedSource]:
    """Make a model folder of what the user holds.

    A string is a local path where there is something at that path, else the id of a repository.
    What had to be made lasts as long as the context.

    Args:
        model: The path of a model folder, or of a folder with several; or a repository's id.
        subfolder: The folder inside it that holds the model.
        revision: A branch, tag or commit hash of the repository.

    Raises:
        InvalidRequestError: If an argument is not what it may be.
        SourceError: If there is no such source, it cannot be read, or it holds several models.
        InvalidModelError: If there is no whole model.
    """
    inside = check_subfolder(subfolder)
    if not isinstance(model, str | Path):
        raise InvalidRequestError(f"{_EXPECTED}; got a {type(model).__name__}.", param="model")
    if isinstance(model, str) and not Path(model).exists() and _REPO_ID.fullmatch(model):
        yield _from_hub(model, inside, revision)
        return
    if revision is not None:
        raise InvalidRequestError(
            "revision is for repositories on the hub; model is not the id of one.", param="revision"
        )
    yield _from_folder(model, inside)


def _from_folder(model: str | Path, subfolder: str) -> ResolvedSource:
    path = Path(model)
    if not path.is_dir() or model == "":
        kind = "a file" if path.is_file() else "nothing"
        raise SourceNotFoundError(f"{_EXPECTED}; there is {kind} at the path given.", param="model")
    part = choose(list_files(path), subfolder=subfolder, convert=False, place="The folder")
    origin = {"kind": "folder", **_subfolder(part)}
    return ResolvedSource(_read(path / part.subfolder, part), origin)


def _from_hub(repo_id: str, subfolder: str, revision: str | None) -> ResolvedSource:
    from mlflow_phi3_onnx.sources.hub import fetch

    snapshot = fetch(repo_id, revision=revision, subfolder=subfolder, convert=False)
    origin = {
        "kind": "hub",
        "repo_id": repo_id,
        "revision": snapshot.commit,
        **_subfolder(snapshot.part),
    }
    return ResolvedSource(_read(snapshot.path, snapshot.part), origin, snapshot.hashes)


def _subfolder(part: Part) -> dict[str, str]:
    return {"subfolder": part.subfolder} if part.subfolder else {}


def _read(path: Path, part: Part) -> ModelFolder:
    if part.kind == "checkpoint":
        raise InvalidModelError("A transformers checkpoint must be converted before it is saved.")
    return read_folder(path)
