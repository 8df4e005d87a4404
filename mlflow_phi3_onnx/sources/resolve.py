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
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.runtime.providers import PROVIDERS
from mlflow_phi3_onnx.sources import mlflow_models
from mlflow_phi3_onnx.sources.convert.builder import check_dependencies, convert
from mlflow_phi3_onnx.sources.convert.checkpoint import read_checkpoint
from mlflow_phi3_onnx.sources.convert.options import Conversion
from mlflow_phi3_onnx.sources.convert.transformers_objects import (
    is_of_transformers,
    write_checkpoint,
)
from mlflow_phi3_onnx.sources.layout import REPO_ID, Part, check_subfolder, choose
from mlflow_phi3_onnx.sources.local import existing, list_cards, list_files
from mlflow_phi3_onnx.sources.local_copy import local_copy
from mlflow_phi3_onnx.sources.reference import locate_files

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["ResolvedSource", "Source", "resolve"]

_logger = logging.getLogger(__name__)

_EXPECTED = (
    "the path of a folder with a model, the id of a repository on the Hugging Face"
    " hub, such as 'microsoft/Phi-3-mini-4k-instruct-onnx', the URI of an MLflow model, models:/ or"
    " runs:/, a text-generation pipeline or a model of transformers, a loaded GenAIModel, or a"
    " mapping of execution providers to any of these"
)

_NOT_IN_A_REPOSITORY = (
    "save_pretrained=False is for what is in a repository on the hub as it is: a model in ONNX"
    " form, or a model of this flavor that was saved so."
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a user gave.

    Attributes:
        model: The path of a folder, the URI of an MLflow model, the id of a repository, an object
            of transformers, a model folder that has been read, or a mapping of execution providers
            to such.
        subfolder: The folder inside it that holds the model.
        revision: A branch, tag or commit hash of the repository.
        tokenizer: The tokenizer of a model that is in memory.
        precision: The form of the weights, where they are converted.
        export_options: How else they are converted; see :class:`Conversion`.
        by_reference: Whether the weights are to stay in the repository.
        adapted: Whether adapters are to be saved beside it.
        origin: Where a folder that has been read came from, as its MLmodel file tells.
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


@dataclass(frozen=True)
class ResolvedSource:
    """A model that can be saved.

    Attributes:
        bundle: Its files and model folders, read and found whole.
        origin: Where it came from, as plain data for the MLmodel file. It names no local path.
        hashes: The SHA-256 that files must have, by name in the bundle, where the source tells.
        reference: Where all of the files are in a repository: its ``repo_id``, the ``revision`` and
            the ``subfolder``; None where they are not.
    """

    bundle: Bundle
    origin: Mapping[str, Any]
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    reference: Mapping[str, str] | None = None


@contextmanager
def resolve(source: Source) -> Generator[ResolvedSource]:
    """Make a model folder of what a user gave.

    A string is a local path where there is something at that path, else a URI of MLflow's, else
    the id of a repository. A checkpoint is converted. What had to be made for it lasts as long as
    the context.

    Raises:
        InvalidRequestError: If an argument is not what it may be, or not for this source.
        SourceError: If there is no such source, it cannot be read, or it holds several models.
        InvalidModelError: If there is no whole model.
        DependencyError: If it must be converted, and what that needs is not installed.
        ConversionError: If it cannot be converted.
    """
    with ExitStack() as stack:
        resolved = _Resolver(source, stack).resolve()
        if source.by_reference and resolved.reference is None:
            raise InvalidRequestError(_NOT_IN_A_REPOSITORY, param="save_pretrained")
        yield resolved


class _Resolver:
    """Resolves one source.

    Args:
        source: What the user gave, not checked yet.
        stack: What to close when the model is not needed any more.
    """

    def __init__(self, source: Source, stack: ExitStack) -> None:
        self._source = source
        self._stack = stack
        self._subfolder = check_subfolder(source.subfolder)
        self._conversion = Conversion.check(source.precision, source.export_options)
        self._must_convert = source.precision is not None or source.export_options is not None

    def resolve(self) -> ResolvedSource:
        model = self._source.model
        if isinstance(model, Mapping):
            return self._from_variants(model)
        if self._source.by_reference and (self._must_convert or not isinstance(model, str | Path)):
            raise InvalidRequestError(_NOT_IN_A_REPOSITORY, param="save_pretrained")
        if isinstance(model, str | Path):
            self._refuse("tokenizer", "a model of transformers that is in memory")
            if isinstance(model, str) and REPO_ID.fullmatch(model) and existing(model) is None:
                return self._from_hub(model, self._source.revision, self._must_convert)
            self._refuse("revision", "repositories on the hub")
            copy = self._stack.enter_context(local_copy(model, expected=_EXPECTED))
            return self._from_folder(copy.path, copy.uri)
        if is_of_transformers(model):
            self._refuse("subfolder", "folders and repositories")
            self._refuse("revision", "repositories on the hub")
            return self._from_memory(model)
        if isinstance(model, ModelFolder):
            for name in ("subfolder", "revision", "tokenizer", "precision", "export_options"):
                self._refuse(name, "models that are not loaded")
            bundle = bundle_of_folder(model.path, model.tokenizer_path)
            return ResolvedSource(bundle, {"kind": "loaded_model", **self._source.origin})
        hint = ""
        if type(model).__module__.partition(".")[0] == "peft":
            hint = " Merge a LoRA adapter into its model first: model.merge_and_unload()."
        raise InvalidRequestError(
            f"model must be {_EXPECTED}; got a {type(model).__name__}.{hint}", param="model"
        )

    def _refuse(self, name: str, where: str) -> None:
        if getattr(self._source, name) is not None:
            raise InvalidRequestError(
                f"{name} is for {where}, and model is none of them.", param=name
            )

    def _from_folder(self, path: Path, uri: str | None) -> ResolvedSource:
        if held := mlflow_models.read_held(path, uri):
            self._refuse("subfolder", "folders and repositories")
            return self._from_mlflow(held)
        part = choose(
            list_files(path),
            subfolder=self._subfolder,
            convert=self._must_convert,
            place="The folder",
        )
        kind = "checkpoint" if part.kind == "checkpoint" else "folder"
        origin = {"kind": kind} if uri is None else {"kind": f"mlflow_{kind}", "uri": uri}
        return self._finish(path / part.subfolder, part, origin, {}, list_cards(path))

    def _from_mlflow(self, held: mlflow_models.Held) -> ResolvedSource:
        if FLAVOR_NAME in held.flavors:
            if self._must_convert:
                raise InvalidRequestError(
                    "precision and export_options are for models that are converted, but the MLflow"
                    " model is in ONNX form already.",
                    param="precision",
                )
            saved = read_saved(held.path)
            folder = locate_files(saved)
            saved.check(folder, "size")
            if saved.adapters:
                _logger.warning(
                    "The MLflow model was saved with adapters (%s), which are not carried over:"
                    " give those that you need.",
                    ", ".join(saved.adapters),
                )
            hashes = {name: facts["sha256"] for name, facts in saved.files.items()}
            origin = {**held.origin, "flavor": FLAVOR_NAME}
            if saved.source:
                origin["source"] = saved.source
            reference = asdict(saved.reference) if saved.reference else None
            return ResolvedSource(saved.bundle(folder), origin, hashes, reference)
        if mlflow_models.TRANSFORMERS in held.flavors:
            return self._from_mlflow_transformers(held)
        raise InvalidModelError(
            f"The MLflow model has the flavors {', '.join(sorted(held.flavors))}; expected"
            f" {FLAVOR_NAME}, or {mlflow_models.TRANSFORMERS} with a text-generation pipeline."
        )

    def _from_mlflow_transformers(self, held: mlflow_models.Held) -> ResolvedSource:
        mlflow_models.check_transformers(held)
        check_dependencies()
        flavor = held.flavors[mlflow_models.TRANSFORMERS]
        origin = {**held.origin, "flavor": mlflow_models.TRANSFORMERS}
        if "model_binary" in flavor:
            folder = self._temporary_folder()
            mlflow_models.assemble_checkpoint(held, folder)
            return self._convert(folder, origin)
        # Saved by reference: its weights are on the hub.
        name, revision = flavor["source_model_name"], flavor.get("source_model_revision")
        resolved = self._from_hub(name, revision, must_convert=True)
        return ResolvedSource(resolved.bundle, {**resolved.origin, **origin})

    def _from_hub(self, repo_id: str, revision: str | None, must_convert: bool) -> ResolvedSource:
        from mlflow_phi3_onnx.sources.hub import fetch

        snapshot = fetch(
            repo_id,
            revision=revision,
            subfolder=self._subfolder,
            convert=must_convert,
            built=self._source.by_reference,
        )
        origin = {"kind": "hub", "repo_id": repo_id, "revision": snapshot.commit}
        # What is referred to is one folder of the repository.
        cards = {} if self._source.by_reference else list_cards(snapshot.root)
        resolved = self._finish(snapshot.path, snapshot.part, origin, snapshot.hashes, cards)
        if cards or "conversion" in resolved.origin:
            return resolved
        place = {"repo_id": repo_id, "revision": snapshot.commit}
        reference = {**place, "subfolder": snapshot.part.subfolder}
        return replace(resolved, reference=reference)

    def _from_variants(self, models: Mapping[Any, Any]) -> ResolvedSource:
        for name in ("subfolder", "revision", "tokenizer", "precision", "export_options"):
            self._refuse(name, "a single model")
        if self._source.by_reference:
            raise InvalidRequestError(_NOT_IN_A_REPOSITORY, param="save_pretrained")
        if not models or not set(models) <= set(PROVIDERS):
            names = ", ".join(map(repr, models)) or "none"
            raise InvalidRequestError(
                "model: variants are named by their execution providers, one or more of"
                f" {', '.join(PROVIDERS)}; got {names}.",
                param="model",
            )
        resolved = {
            str(name): _Resolver(Source(model=model), self._stack).resolve()
            for name, model in models.items()
        }
        bundle = bundle_of_variants({name: one.bundle for name, one in resolved.items()})
        origin = {
            "kind": "variants",
            "variants": {name: dict(one.origin) for name, one in resolved.items()},
        }
        hashes: dict[str, str] = {}
        for name, one in resolved.items():
            for file, sha256 in one.hashes.items():
                own = f"{name}/{file}"
                if own in bundle.files or file in bundle.files:
                    hashes[own if own in bundle.files else file] = sha256
        return ResolvedSource(bundle, origin, hashes)

    def _from_memory(self, model: Any) -> ResolvedSource:
        check_dependencies()
        folder = self._temporary_folder()
        origin = write_checkpoint(model, self._source.tokenizer, folder)
        return self._convert(folder, origin)

    def _finish(
        self,
        path: Path,
        part: Part,
        origin: dict[str, Any],
        hashes: Mapping[str, str],
        cards: Mapping[str, Path],
    ) -> ResolvedSource:
        if part.subfolder:
            origin["subfolder"] = part.subfolder
        if part.kind == "checkpoint":
            return self._convert(path, origin, cards)
        return ResolvedSource(_with_cards(bundle_of_folder(path), cards), origin, hashes)

    def _convert(
        self, path: Path, origin: Mapping[str, Any], cards: Mapping[str, Path] | None = None
    ) -> ResolvedSource:
        if self._source.adapted:
            raise InvalidModelError(NO_ADAPTER_INPUTS)
        checkpoint = read_checkpoint(path.absolute())
        folder = self._temporary_folder() / "model"
        facts = convert(checkpoint, folder, self._conversion)
        bundle = _with_cards(bundle_of_folder(folder), {**(cards or {}), **list_cards(path)})
        return ResolvedSource(bundle, {**origin, "conversion": facts})

    def _temporary_folder(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="mlflow-phi3-onnx-", ignore_cleanup_errors=True)
        return Path(self._stack.enter_context(folder))


def _with_cards(bundle: Bundle, cards: Mapping[str, Path]) -> Bundle:
    return Bundle({**cards, **bundle.files}, bundle.variants)
