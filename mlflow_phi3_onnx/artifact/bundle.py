"""What is saved of a model: its files, and the model folders among them.

Most models are one folder. A model with variants has one for each execution provider, and what
does not depend on the provider, such as the tokenizer, once beside them.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.folder import TOKENIZER_FILES, ModelFolder, read_folder
from mlflow_phi3_onnx.artifact.package import is_package, read_package
from mlflow_phi3_onnx.core.files import inside, list_own
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Bundle", "Variant", "bundle_of_folder", "bundle_of_variants"]

_TEMPLATE_FILES = (
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    "chat_template.json",
)
_TEMPLATE_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class Variant:
    """One of the forms of a model.

    Attributes:
        name: What it is called; ``""`` where the model has one form.
        folder: Where it lies among the model's files, ``""`` for the top.
        model: Its folder, read and found whole.
        provider: The execution provider that it is for.
    """

    name: str
    folder: str
    model: ModelFolder
    provider: str


@dataclass(frozen=True)
class Bundle:
    """A model that can be saved.

    Attributes:
        files: Where each file is now, by its name among the model's files.
        variants: Its forms, one or more.
    """

    files: Mapping[str, Path]
    variants: tuple[Variant, ...]

    @property
    def model(self) -> ModelFolder:
        """The folder of its first form; what is not of a provider is the same in all of them."""
        return self.variants[0].model

    @property
    def has_variants(self) -> bool:
        """Whether it can have several forms, of which one is chosen when it is loaded."""
        return self.variants[0].name != ""

    def facts_of_variants(self) -> dict[str, dict[str, Any]]:
        """Describe each form as plain data, by its name."""
        return {
            variant.name: {
                "folder": variant.folder,
                "execution_provider": variant.provider,
                "precision": variant.model.graph.precision,
                "context_length": variant.model.context_length,
            }
            for variant in self.variants
        }


def bundle_of_folder(path: Path, tokenizer_path: Path | None = None) -> Bundle:
    """Read a model folder, or an ONNX Runtime model package.

    Args:
        path: The folder.
        tokenizer_path: Where its tokenizer is; None for the same folder.

    Raises:
        InvalidModelError: If it is not whole.
    """
    if is_package(path):
        members = read_package(path)
        variants = tuple(
            Variant(member.name, member.folder, read_folder(path / member.folder), member.provider)
            for member in members
        )
        _check_alike({variant.name: variant.model for variant in variants})
        return Bundle(_files(path), variants)
    model = read_folder(path, tokenizer_path)
    files = _files(path)
    if model.tokenizer_path != path:
        files |= {
            name: file
            for name, file in _files(model.tokenizer_path).items()
            if _is_of_tokenizer(name)
        }
    return Bundle(files, (Variant("", "", model, model.providers[0]),))


def bundle_of_variants(models: Mapping[str, Bundle]) -> Bundle:
    """Put models that differ in their execution provider together.

    Args:
        models: Each with one form, by the name of its provider.

    Raises:
        InvalidModelError: If one is for another provider, or they are not forms of one model.
    """
    for name, bundle in models.items():
        _check_provider(name, bundle)
    _check_alike({name: bundle.model for name, bundle in models.items()})
    files: dict[str, Path] = {}
    for name, bundle in models.items():
        for file, path in bundle.files.items():
            if _is_shared(file, bundle.model) and filecmp.cmp(
                path, files.setdefault(file, path), shallow=False
            ):
                continue
            if _is_of_tokenizer(file):
                raise InvalidModelError(
                    f"{file} of the variant {name} is not that of the others. Variants share their"
                    " tokenizer and their chat template: give folders that were made from one"
                    " checkpoint."
                )
            files[f"{name}/{file}"] = path
    return Bundle(
        files,
        tuple(Variant(name, name, bundle.model, name) for name, bundle in models.items()),
    )


def _files(folder: Path) -> dict[str, Path]:
    refusal = "A file of the model cannot be saved under its name"
    files = {name: inside(folder, name, refusal) for name in list_own(folder)}
    return {name: path for name, path in files.items() if path.is_file()}


def _check_provider(name: str, bundle: Bundle) -> None:
    if bundle.has_variants:
        raise InvalidModelError(f"The variant {name} has variants itself; give one of them.")
    if bundle.variants[0].provider != name:
        raise InvalidModelError(
            f"The variant {name} is a folder for {bundle.variants[0].provider}: that is what its"
            " genai_config.json asks for under session_options.provider_options."
        )


def _check_alike(models: Mapping[str, ModelFolder]) -> None:
    """Check that models are forms of one, by what a request can see of them."""
    facts = {
        name: (model.model_type, model.vocab_size, set(model.eos_token_ids))
        for name, model in models.items()
    }
    first, *others = facts
    for name in others:
        if facts[name] != facts[first]:
            raise InvalidModelError(
                f"The variants {first} and {name} are not forms of one model: they differ in their"
                " architecture, their vocabulary or the ids that end a completion."
            )


def _is_of_tokenizer(name: str) -> bool:
    top = PurePosixPath(name).parts[0]
    return name in TOKENIZER_FILES + _TEMPLATE_FILES or top == _TEMPLATE_FOLDER


def _is_shared(name: str, model: ModelFolder) -> bool:
    return _is_of_tokenizer(name) or ("/" not in name and name not in model.native_files)
