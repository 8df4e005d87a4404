"""Repositories of the Hugging Face hub.

``huggingface_hub`` downloads, into its own cache and with its own progress bar. Its settings hold:
``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and the rest of them.
"""

from __future__ import annotations

import glob
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants, errors, get_token, scan_cache_dir, snapshot_download
from huggingface_hub.utils import tqdm

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.errors import (
    InvalidModelError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from mlflow_phi3_onnx.sources.convert.builder import check_dependencies
from mlflow_phi3_onnx.sources.layout import Part, choose, files_of, list_files

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

__all__ = ["Snapshot", "fetch"]

_ATTEMPTS = 3
_CLIENT: dict[str, Any] = {"library_name": "mlflow-phi3-onnx", "library_version": __version__}

_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"

# The root of the errors of the HTTP library beneath, which has changed before.
_HTTP_ERROR: Any = errors.HfHubHTTPError.__bases__[0]

# What is said of a repository for which the hub sent a status.
_REFUSALS: dict[int, tuple[type[SourceError], str]] = {
    401: (SourceAccessError, f"The hub refused the token that was sent for {{}}: {_LOG_IN}."),
    403: (SourceAccessError, "The hub forbids {} to the account of the token, or to everyone."),
    404: (SourceNotFoundError, "The repository {} lists a file that the hub does not have."),
}


@dataclass(frozen=True)
class Snapshot:
    """A part of a repository, on this machine.

    Attributes:
        root: The repository's folder in the cache; what it holds must not be changed.
        part: Which part it is.
        commit: The hash of the commit that it is of.
        hashes: The SHA-256 of its large files, by name in the part, as the hub tells them.
    """

    root: Path
    part: Part
    commit: str
    hashes: Mapping[str, str]


class _Progress(tqdm):
    """The library's progress bar, on terminals only: it shows one of its bars everywhere."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"disable": None, **options})


def fetch(
    repo_id: str, *, revision: str | None, subfolder: str, convert: bool, built: bool = False
) -> Snapshot:
    """Bring the model of a repository onto this machine, and no other files of it.

    Files that are in the cache already are not downloaded again.

    Args:
        repo_id: Owner and name, with a slash between them.
        revision: A branch, tag or commit hash; None for the main branch.
        subfolder: The folder inside it to look in, ``""`` for everywhere.
        convert: Whether only a checkpoint is wanted.
        built: Whether only a model in ONNX form is wanted.

    Raises:
        SourceError: If it cannot be found, read or reached, or holds several models and no
            subfolder was given.
        InvalidModelError: If it holds no model.
        DependencyError: If it holds a checkpoint, and what converts it is not installed.
    """
    place = f"The repository {repo_id}"

    def chosen(files: Collection[str]) -> Part:
        part = choose(files, subfolder=subfolder, convert=convert, place=place)
        if built and part.kind == "checkpoint":
            raise InvalidModelError(
                f"{place} holds PyTorch weights. They are converted, and what comes of it is in no"
                " repository: save it with its weights (save_pretrained=True)."
            )
        return part

    if constants.HF_HUB_OFFLINE:
        root = _cached(repo_id, revision)
        return Snapshot(root, chosen(list_files(root)), root.name, {})
    with _translated(repo_id, revision):
        for _ in range(_ATTEMPTS):
            info = HfApi(**_CLIENT).model_info(repo_id, revision=revision, files_metadata=True)
            lfs = {file.rfilename: file.lfs for file in info.siblings or []}
            part = chosen(lfs)
            if part.kind == "checkpoint":
                check_dependencies()
            names = files_of(part, lfs)
            patterns = [glob.escape(name) for name in names]
            root = Path(
                snapshot_download(
                    repo_id,
                    revision=revision,
                    allow_patterns=patterns,
                    tqdm_class=_Progress,
                    **_CLIENT,
                )
            )
            if root.name == info.sha:
                prefix = f"{part.subfolder}/" if part.subfolder else ""
                hashes = {
                    name.removeprefix(prefix): facts.sha256
                    for name in names
                    if name.startswith(prefix) and (facts := lfs[name])
                }
                return Snapshot(root, part, root.name, hashes)
    raise SourceError(
        f"{place} changes faster than it is downloaded: give a commit hash as revision.",
        param="revision",
    )


def _cached(repo_id: str, revision: str | None) -> Path:
    """Find a revision in the cache, whichever of its files are there."""
    wanted = revision or constants.DEFAULT_REVISION
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except errors.CacheNotFound:
        repositories = frozenset()
    for repository in repositories:
        if (repository.repo_type, repository.repo_id) == ("model", repo_id):
            for version in repository.revisions:
                if wanted == version.commit_hash or wanted in version.refs:
                    return version.snapshot_path
    raise SourceUnreachableError(
        f"HF_HUB_OFFLINE is set, and the cache does not hold {repo_id} at the revision {wanted}."
        " Unset it, or download the model where the hub can be reached.",
        param="model",
    )


@contextmanager
def _translated(repo_id: str, revision: str | None) -> Generator[None]:
    """Turn what huggingface_hub raises into our errors: its texts hold addresses and paths."""
    try:
        yield
    except errors.GatedRepoError as error:
        what_to_do = "use a token of an account that has" if get_token() else _LOG_IN
        raise SourceAccessError(
            f"The repository {repo_id} is gated: accept its conditions on its page on the hub, and"
            f" {what_to_do}.",
            param="model",
        ) from error
    except errors.RepositoryNotFoundError as error:
        private = "is private to others" if get_token() else f"is private: then {_LOG_IN}"
        raise SourceNotFoundError(
            f"There is no folder {repo_id} here, and no such repository on the hub, or it"
            f" {private}.",
            param="model",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceNotFoundError(
            f"The repository {repo_id} has no revision {revision}.", param="revision"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(repo_id, error) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _REFUSALS:
            kind, message = _REFUSALS[status]
            raise kind(message.format(repo_id), param="model") from error
        raise SourceUnreachableError(
            f"The hub answered with status {status} for {repo_id}. Try again later: files that"
            " came whole are kept.",
            param="model",
        ) from error
    except (_HTTP_ERROR, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the network's
        raise _unreachable(repo_id, error) from error


def _unreachable(repo_id: str, error: Exception) -> SourceUnreachableError:
    return SourceUnreachableError(
        f"The hub could not be reached for {repo_id}, or broke off ({type(error).__name__}). Try"
        " again: files that came whole are kept. With HF_HUB_OFFLINE=1, only the cache is used.",
        param="model",
    )
