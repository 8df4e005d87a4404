"""Adapters beside a model: which may be given, whether they fit its graph, and where they are kept.

An adapter gives values to inputs of the graph that have defaults. One that is not made for the
graph would be loaded all the same, and fail at its first request, so that is found here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.lora.peft import PEFT_CONFIG, PEFT_WEIGHTS, convert_peft
from mlflow_phi3_onnx.artifact.lora.ranks import filled, is_even, unmatched
from mlflow_phi3_onnx.artifact.manifest import stage
from mlflow_phi3_onnx.core.checks import describe_kind, some_of
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError, SourceNotFoundError
from mlflow_phi3_onnx.runtime.adapters import (
    ADAPTER_SUFFIX,
    read_adapter,
    read_facts,
    write_adapter,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.artifact.onnx.graph import GraphFacts

__all__ = ["ADAPTERS", "NO_ADAPTER_INPUTS", "check_adapters", "fitted", "stage_adapters"]

ADAPTERS = "adapters"
"""The folder of an artifact that holds its adapters."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN = 3

NO_ADAPTER_INPUTS = (
    "adapters: the model's graph has no inputs for adapters. Build one that has: convert the"
    " checkpoint together with a PEFT adapter of the layers that are meant, python -m"
    " onnxruntime_genai.models.builder with --extra_options adapter_path=PEFT_FOLDER, and make"
    " inputs of what it adds, olive generate-adapter -m BUILT -o FOLDER. Or merge the adapter into"
    " the checkpoint, with model.merge_and_unload(), and give the merged model."
)
"""What is wrong with a graph that no adapter can be used with, and what to do."""


def check_adapters(given: Any) -> dict[str, Path]:
    """Check the argument ``adapters``, before the model is touched.

    Args:
        given: A mapping of names to paths, each of an ``.onnx_adapter`` file or a PEFT folder; None
            for none.

    Raises:
        InvalidRequestError: If it is none, or a name is not what it may be.
        SourceNotFoundError: If there is nothing at a path.
        InvalidModelError: If a folder is none of PEFT's.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidRequestError(
            "adapters must be a mapping of names to paths, of .onnx_adapter files or PEFT folders;"
            f" got {describe_kind(given)}.",
            param="adapters",
        )
    adapters: dict[str, Path] = {}
    for name, path in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidRequestError(
                "adapters: a name must be 1 to 64 letters, digits, '.', '_' and '-', of ASCII, and"
                f" begin with a letter or digit; got {name!r}.",
                param="adapters",
            )
        if name.lower() in map(str.lower, adapters):
            raise InvalidRequestError(
                f"adapters: there is another name like {name!r}, which differs only in upper and"
                " lower case.",
                param="adapters",
            )
        adapters[name] = _check_path(name, path)
    return adapters


@contextmanager
def fitted(adapters: Mapping[str, Path], folder: ModelFolder) -> Generator[dict[str, Path]]:
    """Check that adapters fit a model, and convert those of PEFT.

    Args:
        adapters: Checked adapters.
        folder: The model folder.

    Yields:
        An ``.onnx_adapter`` file for each name. Converted ones last as long as the context.

    Raises:
        InvalidModelError: If one is damaged, or not made for the model's graph.
        InvalidRequestError: If one has the name that the model's own responses carry.
    """
    with tempfile.TemporaryDirectory(
        prefix="mlflow-phi3-onnx-", ignore_cleanup_errors=True
    ) as work:
        files: dict[str, Path] = {}
        for name, path in adapters.items():
            if name == folder.model_type:
                raise InvalidRequestError(
                    f"adapters: {name!r} is the name that responses of the model itself carry.",
                    param="adapters",
                )
            if not folder.graph.optional:
                raise InvalidModelError(NO_ADAPTER_INPUTS)
            files[name] = _fitted_file(name, path, folder.graph, Path(work))
        yield files


def stage_adapters(adapters: Mapping[str, Path], path: Path, *, link: bool) -> dict[str, Any]:
    """Put adapters into an artifact.

    Args:
        adapters: The files, by name.
        path: The artifact's folder.
        link: Whether to make symbolic links, for a folder that is copied again at once.

    Returns:
        Path in the artifact, size in bytes and SHA-256 of each, by name.
    """
    if not adapters:
        return {}
    files = {f"{name}{ADAPTER_SUFFIX}": source for name, source in adapters.items()}
    staged = stage(files, path / ADAPTERS, link=link, outside=path)
    return {
        file.removesuffix(ADAPTER_SUFFIX): {"path": f"{ADAPTERS}/{file}", **facts}
        for file, facts in staged.items()
    }


def _check_path(name: str, given: Any) -> Path:
    if not isinstance(given, str | Path):
        raise InvalidRequestError(
            f"adapters: {name!r} must be a path; got {describe_kind(given)}.", param="adapters"
        )
    path = Path(given).absolute()
    if not path.exists():
        raise SourceNotFoundError(
            f"adapters: there is nothing at the path of {name!r}.", param="adapters"
        )
    if not path.is_dir():
        return path
    missing = [file for file in (PEFT_CONFIG, PEFT_WEIGHTS) if not (path / file).is_file()]
    if missing:
        pickled = (path / "adapter_model.bin").is_file()
        hint = " Pickled weights are not read: save the adapter again, as safetensors."
        raise InvalidModelError(
            f"adapters: the folder of {name!r} has no {' and no '.join(missing)}, so it is no"
            f" adapter of PEFT.{hint * pickled}"
        )
    return path


def _fitted_file(name: str, path: Path, graph: GraphFacts, work: Path) -> Path:
    """Return an adapter's file; in the folder ``work``, where one has to be made."""
    made = work / f"{name}{ADAPTER_SUFFIX}"
    if path.is_dir():
        parameters = convert_peft(path, graph, name)
        facts = {key: (graph.inputs[key], array.shape) for key, array in parameters.items()}
    else:
        parameters = None
        try:
            facts = read_facts(path)
        except InvalidModelError as error:
            message = f"adapters: {name!r} cannot be read. {error.message}"
            raise InvalidModelError(message) from error
    _check_fit(name, facts, graph)
    shapes = {key: shape for key, (_, shape) in facts.items()}
    if parameters is None and is_even(shapes, graph):
        return path
    write_adapter(made, filled(parameters or read_adapter(path), graph))
    return made


def _check_fit(
    name: str, parameters: Mapping[str, tuple[int, tuple[int, ...]]], graph: GraphFacts
) -> None:
    """Check that each parameter is an optional input of the graph, of its type and shape."""
    if unknown := parameters.keys() - graph.optional:
        raise InvalidModelError(
            f"adapters: {name!r} is not made for this model: it has"
            f" {some_of(sorted(unknown), _SHOWN)}, and the graph has"
            f" {some_of(sorted(graph.optional), _SHOWN)}."
        )
    for parameter, (element, shape) in parameters.items():
        axes = graph.shapes[parameter]
        if element != graph.inputs[parameter]:
            raise InvalidModelError(
                f"adapters: {name!r} has {parameter} in another type of numbers than the graph."
            )
        if len(axes) != len(shape) or any(
            isinstance(axis, int) and axis != length
            for axis, length in zip(axes, shape, strict=True)
        ):
            raise InvalidModelError(
                f"adapters: {name!r} is not made for this model: {parameter} has the shape"
                f" {_listed(shape)}, and the graph has {_listed(axis or 'any' for axis in axes)}."
            )
    if layer := unmatched({key: shape for key, (_, shape) in parameters.items()}):
        raise InvalidModelError(
            f"adapters: lora_A and lora_B of {layer}, in {name!r}, do not belong together."
        )


def _listed(shape: Iterable[object]) -> str:
    return f"({', '.join(map(str, shape))})"
