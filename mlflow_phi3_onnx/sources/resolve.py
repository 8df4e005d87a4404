"""The one door of this room: what a user gave, to a checked model folder and its origin."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.bundle import Bundle, bundle_of_folder, bundle_of_variants
from mlflow_phi3_onnx.artifact.folder import ModelFolder
from mlflow_phi3_onnx.artifact.lora.adapters import NO_ADAPTER_INPUTS
from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME, read_saved
from mlflow_phi3_onnx.core.checks import describe_kind, did_you_mean
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.runtime.providers import PROVIDERS
from mlflow_phi3_onnx.sources import mlflow_models
from mlflow_phi3_onnx.sources.convert.builder import check_dependencies, convert
from mlflow_phi3_onnx.sources.convert.checkpoint import (
    is_of_transformers,
    read_checkpoint,
    write_checkpoint,
)
from mlflow_phi3_onnx.sources.convert.options import Conversion
from mlflow_phi3_onnx.sources.layout import (
    REPO_ID,
    Part,
    check_subfolder,
    choose,
    list_cards,
    list_files,
)
from mlflow_phi3_onnx.sources.local import checked_files, existing, local_copy

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow.models import Model

__all__ = ["ResolvedSource", "Source"]

_logger = logging.getLogger(__name__)

_EXPECTED = (
    "the path of a folder with a model, the id of a repository on the Hugging Face"
    " hub, such as 'microsoft/Phi-3-mini-4k-instruct-onnx', the URI of an MLflow model, models:/ or"
    " runs:/, a text-generation pipeline or a model of transformers, its components ({'model': ...,"
    " 'tokenizer': ...}), a loaded GenAIModel, or a mapping of execution providers to any of these"
)

_NOT_IN_A_REPOSITORY = (
    "save_pretrained=False is for what is in a repository on the hub as it is: a model in ONNX"
    " form, or a model of this flavor that was saved so."
)

_CHOICES = ("subfolder", "revision", "tokenizer", "precision", "export_options")
"""The fields of a source that are not for every kind of model."""


@dataclass(frozen=True)
class ResolvedSource:
    """A model that can be saved.

    Attributes:
        bundle: Its files and model folders, read and found whole.
        origin: Where it came from, as plain data for the MLmodel file. It names no local path.
        hashes: The SHA-256 that files must have, by name in the bundle, where the source tells.
        reference: Where the files are to stay in their repository: its ``repo_id``, the
            ``revision`` and the ``subfolder``.
    """

    bundle: Bundle
    origin: Mapping[str, Any]
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    reference: Mapping[str, str] | None = None


@dataclass(kw_only=True)
class Source:
    """What a user gave; :meth:`resolve` makes a model folder of it.

    Attributes:
        model: The path of a folder, the URI of an MLflow model, the id of a repository, an object
            of transformers or its components, a model folder that has been read, or a mapping of
            execution providers to such.
        subfolder: The folder inside it that holds the model.
        revision: A branch, tag or commit hash of the repository.
        tokenizer: The tokenizer of a model that is in memory.
        precision: The form of the weights, where they are converted.
        export_options: How else they are converted; see :class:`Conversion`.
        by_reference: Whether the weights are to stay in the repository.
        adapted: Whether adapters are to be saved beside it.
        origin: Where a folder that has been read came from, as its MLmodel file tells.

    Raises:
        InvalidRequestError: If the subfolder or the conversion is not what it may be.
    """

    model: Any
    subfolder: str | None = None
    revision: str | None = None
    tokenizer: Any = None
    precision: str | None = None
    export_options: Mapping[str, Any] | None = None
    by_reference: bool = False
    adapted: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if isinstance(self.model, Mapping) and "model" in self.model:
            self._take_components(self.model)
        self._stack = ExitStack()
        self._folder = check_subfolder(self.subfolder)
        self._conversion = Conversion.check(self.precision, self.export_options)
        self._must_convert = self.precision is not None or self.export_options is not None

    def _take_components(self, parts: Mapping[Any, Any]) -> None:
        """Take a model and its tokenizer out of a mapping, as ``mlflow.transformers`` does."""
        if others := set(parts) - {"model", "tokenizer"}:
            raise InvalidRequestError(
                "model: of a model's components, model and tokenizer are taken; got"
                f" {', '.join(sorted(map(repr, others)))} too. Leave the rest out.",
                param="model",
            )
        if self.tokenizer is not None and parts.get("tokenizer") is not None:
            raise InvalidRequestError(
                "tokenizer is given twice, by itself and in model. Give it once.", param="tokenizer"
            )
        self.model = parts["model"]
        if self.tokenizer is None:
            self.tokenizer = parts.get("tokenizer")

    @contextmanager
    def resolve(self) -> Generator[ResolvedSource]:
        """Make a model folder of what was given, for the context: what was made for it goes then.

        A string is a local path where there is something at that path, else a URI of MLflow's, else
        the id of a repository. A checkpoint is converted.

        Raises:
            InvalidRequestError: If a field is not for this source.
            SourceError: If there is no such source, it cannot be read, or it holds several models.
            InvalidModelError: If there is no whole model.
            DependencyError: If it must be converted, and what that needs is not installed.
            ConversionError: If it cannot be converted.
        """
        with self._stack:
            resolved = self._resolved()
            if self.by_reference and resolved.reference is None:
                raise InvalidRequestError(_NOT_IN_A_REPOSITORY, param="save_pretrained")
            yield resolved

    def _resolved(self) -> ResolvedSource:
        model = self.model
        if self.by_reference and (self._must_convert or not isinstance(model, str | Path)):
            raise InvalidRequestError(_NOT_IN_A_REPOSITORY, param="save_pretrained")
        if isinstance(model, Mapping):
            self._refuse("a single model", *_CHOICES)
            return self._from_variants(model)
        if isinstance(model, str | Path):
            self._refuse("a model of transformers that is in memory", "tokenizer")
            if isinstance(model, str) and REPO_ID.fullmatch(model) and existing(model) is None:
                return self._from_hub(model, self.revision, self._must_convert)
            self._refuse("repositories on the hub", "revision")
            path, uri = self._stack.enter_context(local_copy(model, expected=_EXPECTED))
            return self._from_folder(path, uri)
        if is_of_transformers(model):
            self._refuse("folders and repositories", "subfolder")
            self._refuse("repositories on the hub", "revision")
            check_dependencies()
            folder = self._temporary_folder()
            return self._convert(folder, write_checkpoint(model, self.tokenizer, folder))
        if isinstance(model, ModelFolder):
            self._refuse("models that are not loaded", *_CHOICES)
            bundle = bundle_of_folder(model.path, model.tokenizer_path)
            return ResolvedSource(bundle, {"kind": "loaded_model", **self.origin})
        hint = ""
        if type(model).__module__.partition(".")[0] == "peft":
            hint = " Merge a LoRA adapter into its model first: model.merge_and_unload()."
        raise InvalidRequestError(
            f"model must be {_EXPECTED}; got {describe_kind(model)}.{hint}", param="model"
        )

    def _refuse(self, where: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise InvalidRequestError(
                    f"{name} is for {where}, and model is none of them.", param=name
                )

    def _from_folder(self, path: Path, uri: str | None) -> ResolvedSource:
        came_from = {} if uri is None else {"uri": uri}
        if (held := mlflow_models.read_mlmodel(path)) is not None:
            self._refuse("folders and repositories", "subfolder")
            if held.model_id is not None:
                came_from["model_id"] = held.model_id
            return self._from_mlflow(path, held, {"kind": "mlflow_model", **came_from})
        part = choose(
            list_files(path),
            subfolder=self._folder,
            convert=self._must_convert,
            place="The folder",
        )
        kind = "checkpoint" if part.kind == "checkpoint" else "folder"
        kind = kind if uri is None else f"mlflow_{kind}"
        return self._finish(path, part, {"kind": kind, **came_from}, {})

    def _from_mlflow(self, path: Path, held: Model, origin: dict[str, Any]) -> ResolvedSource:
        if FLAVOR_NAME in held.flavors:
            return self._from_saved(path, {**origin, "flavor": FLAVOR_NAME})
        if mlflow_models.TRANSFORMERS not in held.flavors:
            raise InvalidModelError(
                f"The MLflow model has the flavors {', '.join(sorted(held.flavors))}; expected"
                f" {FLAVOR_NAME}, or {mlflow_models.TRANSFORMERS} with a text-generation pipeline."
            )
        mlflow_models.check_transformers(held)
        check_dependencies()
        flavor = held.flavors[mlflow_models.TRANSFORMERS]
        origin["flavor"] = mlflow_models.TRANSFORMERS
        if "model_binary" in flavor:
            folder = self._temporary_folder()
            mlflow_models.assemble_checkpoint(path, flavor["model_binary"], folder)
            return self._convert(folder, origin)
        # Saved by reference: its weights are on the hub.
        name, revision = flavor["source_model_name"], flavor.get("source_model_revision")
        resolved = self._from_hub(name, revision, must_convert=True)
        return replace(resolved, origin={**resolved.origin, **origin})

    def _from_saved(self, path: Path, origin: dict[str, Any]) -> ResolvedSource:
        if self._must_convert:
            raise InvalidRequestError(
                "model: the MLflow model is in ONNX form already, so it is not converted."
                " precision and export_options are for models of PyTorch.",
                param="precision",
            )
        saved = read_saved(path)
        folder = checked_files(saved, "size")
        if saved.adapters:
            _logger.warning(
                "The MLflow model was saved with adapters (%s), which are not carried over: give"
                " those that you need.",
                ", ".join(saved.adapters),
            )
        if saved.source:
            origin["source"] = saved.source
        hashes = {name: facts["sha256"] for name, facts in saved.files.items()}
        place = saved.files_at
        reference = asdict(place) if self.by_reference and not isinstance(place, Path) else None
        return ResolvedSource(saved.bundle(folder), origin, hashes, reference)

    def _from_hub(self, repo_id: str, revision: str | None, must_convert: bool) -> ResolvedSource:
        from mlflow_phi3_onnx.sources.hub import fetch

        snapshot = fetch(
            repo_id,
            revision=revision,
            subfolder=self._folder,
            convert=must_convert,
            built=self.by_reference,
        )
        place = {"repo_id": repo_id, "revision": snapshot.commit}
        origin = {"kind": "hub", **place}
        resolved = self._finish(snapshot.root, snapshot.part, origin, snapshot.hashes)
        if not self.by_reference:
            return resolved
        return replace(resolved, reference={**place, "subfolder": snapshot.part.subfolder})

    def _from_variants(self, models: Mapping[Any, Any]) -> ResolvedSource:
        if not models or not set(models) <= set(PROVIDERS):
            names = ", ".join(map(repr, models)) or "none"
            wrong = next((name for name in models if name not in PROVIDERS), None)
            raise InvalidRequestError(
                "model: variants are named by their execution providers, one or more of"
                f" {', '.join(PROVIDERS)}; got {names}.{did_you_mean(wrong, PROVIDERS)}",
                param="model",
            )
        resolved = {
            str(name): self._stack.enter_context(Source(model=model).resolve())
            for name, model in models.items()
        }
        bundle = bundle_of_variants({name: one.bundle for name, one in resolved.items()})
        origins = {name: dict(one.origin) for name, one in resolved.items()}
        hashes = {
            # What all variants share has no folder before its name.
            own if (own := f"{name}/{file}") in bundle.files else file: sha256
            for name, one in resolved.items()
            for file, sha256 in one.hashes.items()
        }
        return ResolvedSource(bundle, {"kind": "variants", "variants": origins}, hashes)

    def _finish(
        self, root: Path, part: Part, origin: dict[str, Any], hashes: Mapping[str, str]
    ) -> ResolvedSource:
        """Read or convert the part of a folder or repository that holds the model."""
        if part.subfolder:
            origin["subfolder"] = part.subfolder
        path = root / part.subfolder
        if part.kind == "checkpoint":
            return self._convert(path, origin, root)
        bundle = bundle_of_folder(path)
        if not self.by_reference:  # what is referred to is one folder of the repository
            bundle = _with_cards(bundle, root)
        return ResolvedSource(bundle, origin, hashes)

    def _convert(self, path: Path, origin: Mapping[str, Any], *roots: Path) -> ResolvedSource:
        if self.adapted:
            raise InvalidModelError(NO_ADAPTER_INPUTS)
        checkpoint = read_checkpoint(path.absolute())
        folder = self._temporary_folder() / "model"
        facts = convert(checkpoint, folder, self._conversion)
        bundle = _with_cards(bundle_of_folder(folder), *roots, path)
        return ResolvedSource(bundle, {**origin, "conversion": facts})

    def _temporary_folder(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="mlflow-phi3-onnx-", ignore_cleanup_errors=True)
        return Path(self._stack.enter_context(folder))


def _with_cards(bundle: Bundle, *folders: Path) -> Bundle:
    """Add the licence and the card that lie at the top of folders, the last one's first."""
    cards = {name: file for folder in folders for name, file in list_cards(folder).items()}
    return Bundle({**cards, **bundle.files}, bundle.variants)
