"""What a folder or a repository holds, told from its files' names, and which part is meant."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from mlflow_phi3_onnx.artifact.folder import CONFIG_FILE
from mlflow_phi3_onnx.artifact.package import MANIFEST_FILE
from mlflow_phi3_onnx.core.checks import some_of
from mlflow_phi3_onnx.core.files import inside, list_visible, refuse_link_out
from mlflow_phi3_onnx.errors import (
    InvalidModelError,
    InvalidRequestError,
    SourceError,
    SourceNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = [
    "CARD",
    "CHECKPOINT_CONFIG",
    "REPO_ID",
    "WEIGHTS",
    "Part",
    "check_subfolder",
    "choose",
    "files_of",
    "list_cards",
    "list_files",
]

CHECKPOINT_CONFIG = "config.json"

CARD = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)([-._].*)?|(README|MODEL_CARD)\.md", re.IGNORECASE)
"""The files that say what a model is and what may be done with it."""

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""The id of a repository on the hub: its owner's name and its own."""

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""The weights files of a transformers checkpoint."""

_DEPTH = 4
"""How many folders deep a model is looked for: a path such as a home folder holds very many."""

_CHECKPOINT_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}
_NEVER_OF_ONNX = {".safetensors", ".pt", ".pth", ".gguf", ".py"}
# Others that end in .bin are what an NPU's compiler has made of a graph.
_PICKLED = re.compile(
    r"(pytorch_model|adapter_model|training_args|optimizer|scheduler|rng_state)([-._].*)?\.bin"
)

_EXPECTED = (
    f"Expected a folder of ONNX Runtime GenAI, with {CONFIG_FILE}, or a transformers checkpoint,"
    f" with {CHECKPOINT_CONFIG} and model.safetensors."
)

# Forms that people take for a model: the files that they are known by, and what to say of them.
_OTHER_FORMS = {
    ("adapter_config.json",): (
        " It holds a LoRA adapter: merge it into its base model, and give that."
    ),
    (CHECKPOINT_CONFIG, "*.bin"): (
        " Its weights are pickled, and reading them could run code: load the model with"
        " transformers and save it with save_pretrained, as safetensors."
    ),
    ("*.gguf",): " It holds GGUF files, which are llama.cpp's.",
    ("*.onnx",): " It holds ONNX graphs, but none that was built for ONNX Runtime GenAI.",
}


@dataclass(frozen=True)
class Part:
    """The part of a folder or repository that holds the model.

    Attributes:
        kind: ``"onnx"`` for a folder of ONNX Runtime GenAI, ``"package"`` for an ONNX Runtime model
            package, ``"checkpoint"`` for weights that are to be converted.
        subfolder: Its path inside, ``""`` for the top.
    """

    kind: Literal["onnx", "package", "checkpoint"]
    subfolder: str


def check_subfolder(subfolder: str | None) -> str:
    """Return a subfolder in its plain form, ``""`` for none.

    Raises:
        InvalidRequestError: If it is not a relative path that stays inside.
    """
    if isinstance(subfolder, str):  # typed by a user: Windows' slashes and "./" are no harm
        subfolder = _join("", subfolder.replace("\\", "/"))
    if subfolder in (None, ""):
        return ""
    refusal = "subfolder must be a relative path inside the model's folder or repository"
    error = partial(InvalidRequestError, param="subfolder")
    return inside(Path(), subfolder, refusal, error).as_posix()


def choose(files: Collection[str], *, subfolder: str, convert: bool, place: str) -> Part:
    """Choose the part of a folder or repository that holds the model.

    Args:
        files: The paths of its files, relative and with slashes.
        subfolder: Where to look, ``""`` for everywhere.
        convert: Whether only a checkpoint is wanted, because options of a conversion were given.
        place: What it is called in errors.

    Raises:
        SourceNotFoundError: If there is no such subfolder.
        SourceError: If there are several models.
        InvalidRequestError: If a conversion is wanted and all there is is in ONNX form already.
        InvalidModelError: If there is no model.
    """
    names = _below(files, subfolder)
    if subfolder and not names:
        raise SourceNotFoundError(
            f"{place} has no subfolder {subfolder!r}.{_list_models(_models(files))}",
            param="subfolder",
        )
    models = _models(names)
    checkpoint = CHECKPOINT_CONFIG in names and any(WEIGHTS.fullmatch(name) for name in names)
    if convert:
        if checkpoint:
            return Part("checkpoint", subfolder)
        if models:
            raise InvalidRequestError(
                f"model: {place[0].lower()}{place[1:]} is in ONNX form already, so it is not"
                " converted. precision, export_options and tokenizer are for models of PyTorch.",
                param="precision",
            )
    elif "" in models:
        return Part("onnx", subfolder)
    elif models and MANIFEST_FILE in names:
        return Part("package", subfolder)
    elif len(models) + checkpoint > 1:
        way_out = " Or convert its checkpoint: give a precision." if checkpoint else ""
        raise SourceError(
            f"{place} holds several models; choose one with subfolder=."
            f"{_list_models(models, subfolder)}{way_out}",
            param="subfolder",
        )
    elif checkpoint:
        return Part("checkpoint", subfolder)
    elif models:
        return Part("onnx", _join(subfolder, models[0]))
    raise InvalidModelError(f"{place} has no {CONFIG_FILE}.{_what_else(names)} {_EXPECTED}")


def files_of(part: Part, files: Collection[str]) -> list[str]:
    """Choose the files that a model needs, in order, of all that a repository has.

    Its licence and its card are among them, which lie at the repository's top.
    """
    top = PurePosixPath(part.subfolder)
    # Other models that lie inside are left out; those of a package belong to it.
    folders = _models(files) if part.kind == "onnx" else []
    others = {path for path in map(PurePosixPath, folders) if top in path.parents}

    def is_needed(path: PurePosixPath) -> bool:
        if not path.is_relative_to(top):
            return False
        if part.kind == "checkpoint":
            known = path.suffix in _CHECKPOINT_SUFFIXES or WEIGHTS.fullmatch(path.name)
            return bool(known) and path.parent == top and not path.name.startswith(".")
        hidden = any(name.startswith(".") for name in path.relative_to(top).parts)
        other = path.suffix in _NEVER_OF_ONNX or _PICKLED.fullmatch(path.name)
        return not (hidden or other or others.intersection(path.parents))

    return [
        name for name in sorted(files) if CARD.fullmatch(name) or is_needed(PurePosixPath(name))
    ]


def list_files(folder: Path) -> list[str]:
    """List a folder's files, relative and with slashes, without what is hidden or lies deep."""
    return list_visible(folder, _DEPTH)


def list_cards(folder: Path) -> dict[str, Path]:
    """Find the licence and the card of a model at the top of a folder, by name.

    Raises:
        InvalidModelError: If one is a link that leads out of the folder.
    """
    cards = [path for path in sorted(folder.glob("*")) if CARD.fullmatch(path.name)]
    for path in cards:
        refuse_link_out(folder, path)
    return {path.name: path for path in cards if path.is_file()}


def _below(files: Iterable[str], subfolder: str) -> set[str]:
    prefix = f"{subfolder}/" if subfolder else ""
    return {name.removeprefix(prefix) for name in files if name.startswith(prefix)}


def _models(names: Iterable[str]) -> list[str]:
    paths = (PurePosixPath(name) for name in names)
    return sorted(_join("", str(path.parent)) for path in paths if path.name == CONFIG_FILE)


def _join(subfolder: str, name: str) -> str:
    path = PurePosixPath(subfolder, name)
    return "" if path == PurePosixPath() else path.as_posix()


def _list_models(models: list[str], subfolder: str = "") -> str:
    named = [_join(subfolder, model) for model in models if model]
    return f" These folders inside hold one: {some_of(named)}." if named else ""


def _what_else(names: Collection[str]) -> str:
    """Say what was found instead, where it is a form that people take for a model."""
    for patterns, says in _OTHER_FORMS.items():
        if all(fnmatch.filter(names, pattern) for pattern in patterns):
            return says
    return ""
