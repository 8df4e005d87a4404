"""From a place to a side of a load test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME
from mlflow_phi3_onnx.demo import demo_model_path
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.evaluation.load.http_stream import is_url
from mlflow_phi3_onnx.evaluation.load.side import NativeSide, PyTorchSide
from mlflow_phi3_onnx.evaluation.load.url_side import URLSide
from mlflow_phi3_onnx.evaluation.open_side import open_pipeline
from mlflow_phi3_onnx.evaluation.side import Place
from mlflow_phi3_onnx.flavor.load import read_model
from mlflow_phi3_onnx.sources.local import EXPECTED_PLACES, local_copy
from mlflow_phi3_onnx.sources.mlflow_models import TRANSFORMERS, read_mlmodel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from mlflow_phi3_onnx.evaluation.load.side import LoadSide

__all__ = ["open_load_side"]


def open_load_side(
    place: str | None,
    param: str,
    stack: ExitStack,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    timeout: float = 600.0,
) -> LoadSide:
    """Open what answers requests: as a server would, with the loop that suits it.

    Args:
        place: An OpenAI base URL; or a ``models:/`` or ``runs:/`` URI or a folder, of a model of
            this flavor or of ``mlflow.transformers``; None is the demo model.
        param: The argument that it came in.
        stack: What had to be loaded lasts as long as this.
        name: Which of a URL's models.
        config: Replaces values of a model's configuration, by key.
        timeout: Seconds after which a URL's response that says nothing is given up.

    Raises:
        InvalidRequestError: If an argument does not belong to such a side.
        SourceError: If there is nothing at the place.
        InvalidModelError: If the model cannot be loaded.
        DependencyError: If it needs PyTorch and transformers, and they are not installed.
        HTTPError: If a server refuses to answer.
    """
    if is_url(place):
        assert place is not None
        _refuse(config, f"{param}_config", "a URL")
        return URLSide(place, name, timeout, param)
    _refuse(name, f"{param}_id", "a model that is loaded here")
    expected = f"{EXPECTED_PLACES}, a model folder, or an OpenAI base URL"
    where = demo_model_path() if place is None else place
    folder, uri = stack.enter_context(local_copy(where, expected=expected, param=param))
    held = read_mlmodel(folder)
    known = Place(uri or folder.absolute().name, held and held.model_id)
    if held is None or FLAVOR_NAME in held.flavors:
        opened = read_model(folder, config).open(ServingPolicy(default_loop="auto"))
        return NativeSide(stack.enter_context(opened.model), known)
    if TRANSFORMERS not in held.flavors:
        raise InvalidModelError(
            f"{param} has the flavors {', '.join(sorted(held.flavors))}; expected {FLAVOR_NAME}, or"
            f" {TRANSFORMERS} with a text-generation pipeline."
        )
    _refuse(config, f"{param}_config", "a model of transformers")
    return PyTorchSide(open_pipeline(folder, param, known))


def _refuse(value: object, param: str, whose: str) -> None:
    if value:
        raise InvalidRequestError(f"{param} is not for {whose}. Leave it out.", param=param)
