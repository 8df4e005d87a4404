"""The files of a saved model: copied or linked once, hashed, and checked when they are loaded."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["check_sizes", "stage"]

_BLOCK = 1 << 22


def stage(source: Path, target: Path, *, link: bool, outside: Path) -> dict[str, dict[str, Any]]:
    """Put a model folder's files into an artifact, and hash them on the way.

    Hidden files and folders are left out. A progress bar is shown on a terminal.

    Args:
        source: The model folder.
        target: Where the files go; it must not exist.
        link: Whether to make symbolic links, for a folder that is copied again at once.
        outside: A folder whose files are left out, for an artifact inside the model's own folder.

    Returns:
        Size in bytes and SHA-256 of each file, by its path relative to the folder.
    """
    files = [name for name in _files(source) if not (source / name).is_relative_to(outside)]
    target.mkdir(parents=True)
    total = sum((source / name).stat().st_size for name in files)
    manifest: dict[str, dict[str, Any]] = {}
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Reading model", disable=None, leave=False
    ) as progress:
        for name in files:
            goal = target / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            if not (link and _link(source / name, goal)):
                shutil.copyfile(source / name, goal)
            digest, size = _digest(goal, progress)
            manifest[name.as_posix()] = {"size": size, "sha256": digest}
    return manifest


def check_sizes(folder: Path, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that a saved model's files are there, each with its size.

    Raises:
        InvalidModelError: If one is missing or has another size, or its name leads elsewhere.
    """
    for name, facts in manifest.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise InvalidModelError("The MLmodel file lists a file outside the model.")
        file = folder.joinpath(*relative.parts)
        if not file.is_file():
            raise InvalidModelError(f"The model has lost its file {name}.")
        size = file.stat().st_size
        if size != facts["size"]:
            raise InvalidModelError(
                f"{name} has {size:,} bytes, but {facts['size']:,} were saved: it was cut short or"
                " changed. Log the model again."
            )


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name


def _link(source: Path, target: Path) -> bool:
    try:
        target.symlink_to(source.resolve())
    except OSError:
        return False
    return True


def _digest(path: Path, progress: tqdm[Any]) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            progress.update(len(block))
    return digest.hexdigest(), size
