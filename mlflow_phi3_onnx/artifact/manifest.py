"""The files of a saved model: copied or linked once, hashed, and checked when they are loaded."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from mlflow_phi3_onnx.core.files import inside, link_or_copy, list_own, open_file
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Manifest", "Verify", "check_files", "stage", "write_manifest"]

Manifest = dict[str, dict[str, Any]]
"""Size in bytes and SHA-256 of each file, by its path relative to the folder."""

Verify = Literal["size", "hash", "off"]
"""How closely files are checked; see :func:`check_files`."""

SMALL_FILE = 1 << 22
"""Files up to so many bytes are hashed whenever a model is loaded: that takes milliseconds."""

_BLOCK = 1 << 22


def stage(files: Mapping[str, Path], target: Path, *, link: bool, outside: Path) -> Manifest:
    """Put a model's files into an artifact, and hash them on the way.

    A progress bar is shown on a terminal.

    Args:
        files: Where each file is, by its path in the target.
        target: Where the files go; it must not exist.
        link: Whether to make symbolic links, for a folder that is copied again at once.
        outside: A folder whose files are left out, for an artifact inside the model's own folder.

    Returns:
        What was put there.

    Raises:
        InvalidModelError: If a file has a name that would be refused when the model is loaded.
    """
    target.mkdir(parents=True)
    place = link_or_copy if link else shutil.copyfile
    placed: dict[str, Path] = {}
    for name, source in files.items():
        if source.is_relative_to(outside):
            continue
        goal = inside(target, name, "A file of the model cannot be saved under its name")
        goal.parent.mkdir(parents=True, exist_ok=True)
        place(source, goal)
        placed[name] = goal
    return write_manifest(placed)


def write_manifest(files: Mapping[str, Path]) -> Manifest:
    """Measure and hash files. A progress bar is shown on a terminal."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    hashes = _hashes(files, sum(sizes.values()))
    return {name: {"size": sizes[name], "sha256": sha256} for name, sha256 in hashes}


def check_files(folder: Path, manifest: Manifest, level: Verify, *, own: bool = True) -> None:
    """Check that a saved model's files are as they were saved, before anything reads them.

    Args:
        folder: The folder that they are in.
        manifest: What was saved.
        level: ``"size"``: every file is there with its size, small ones have their hash, and there
            is no other file. ``"hash"``: every file has its hash. ``"off"``: only that no file is a
            link out of the folder.
        own: Whether the folder is the artifact's own, and not a cache's, where files are links and
            others lie beside them.

    Raises:
        InvalidModelError: If a file is missing, is not as it was saved, was not saved, or is a link
            that leads out of the folder.
    """
    found = list_own(folder) if own and folder.exists() else []
    if level == "off":
        return
    for name, facts in manifest.items():
        _check_file(folder, name, facts["size"], own=own)
    if others := [name for name in found if name not in manifest]:
        raise InvalidModelError(
            f"{others[0]} was not saved with the model: remove it, or log the model again with it."
        )
    known = [
        name for name, facts in manifest.items() if level == "hash" or facts["size"] <= SMALL_FILE
    ]
    total = sum(manifest[name]["size"] for name in known)
    for name, sha256 in _hashes({name: folder / name for name in known}, total):
        if sha256 != manifest[name]["sha256"]:
            raise InvalidModelError(
                f"{name} is not the file that was saved: it has other bytes. Log the model again,"
                " or remove what was downloaded and load it again."
            )


def _check_file(folder: Path, name: str, size: int, *, own: bool) -> None:
    refusal = "The MLmodel file lists a file outside the model"
    file = inside(folder, name, refusal, links=not own)
    if not file.is_file():
        raise InvalidModelError(f"The model has lost its file {name}.")
    found = file.stat().st_size
    if found != size:
        raise InvalidModelError(
            f"{name} has {found:,} bytes, but {size:,} were saved: it was cut short or changed. Log"
            " the model again."
        )


def _hashes(files: Mapping[str, Path], total: int) -> Iterator[tuple[str, str]]:
    """Yield the SHA-256 of each file, in hexadecimal."""
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Reading model", disable=None, leave=False
    ) as progress:
        for name, path in files.items():
            digest = hashlib.sha256()
            with open_file(path) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    progress.update(len(block))
            yield name, digest.hexdigest()
