"""What can be compared: a model of this flavor or one of transformers, behind one interface."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.saved import FLAVOR_NAME
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import DependencyError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.evaluation.side import Place
from mlflow_phi3_onnx.flavor.functions import load_model
from mlflow_phi3_onnx.model.native import GenAIModel
from mlflow_phi3_onnx.sources.convert.checkpoint import (
    generator_parts,
    is_of_transformers,
    is_pipeline,
)
from mlflow_phi3_onnx.sources.local import local_copy
from mlflow_phi3_onnx.sources.mlflow_models import TRANSFORMERS, read_mlmodel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from mlflow_phi3_onnx.evaluation.side import Side, Text
    from mlflow_phi3_onnx.evaluation.transformers_side import TransformersSide

__all__ = ["OnnxSide", "open_pipeline", "open_side", "takes_tokenizer"]

_EXPECTED = (
    "a GenAIModel, a pyfunc of this flavor or of mlflow.transformers, the path or the models:/ or"
    " runs:/ URI of such a model, a text-generation pipeline of transformers, or a model of"
    " transformers with tokenizer="
)


class OnnxSide:
    """A model of this flavor.

    Args:
        model: The model.
        place: Where it was loaded from.
    """

    def __init__(self, model: GenAIModel, place: Place) -> None:
        self._model = model
        form = [model.folder.graph.precision, model.execution_provider, f"{model.loop} loop"]
        self.label = ", ".join(filter(None, [FLAVOR_NAME, model.name, *form, place.name]))
        self.place = place
        self.context_length: int | None = model.limits.context_length
        self.vocab_size = model.limits.vocab_size

    def encode(self, prompt: Text) -> list[int]:
        """Turn a prompt into token ids. Raises as a :class:`Side`'s."""
        if isinstance(prompt, str):
            return self._model.tokenize(prompt)
        return self._model.apply_chat_template(prompt, tokenize=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included."""
        return self._model.detokenize(ids)

    def greedy(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue a prompt greedily; a token that ends the completion is part of it."""
        return self._model.greedy_tokens(ids, max_tokens)

    def score(self, ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """Return the log-probability of each token but the first, and the most likely one there."""
        _, *entries = self._model.token_logprobs(list(ids), top_logprobs=1)
        logprobs = [entry["logprob"] for entry in entries]
        return logprobs, [entry["top_logprobs"][0]["token_id"] for entry in entries]


def takes_tokenizer(model: Any) -> bool:
    """Whether a tokenizer has to be given along with a model."""
    return is_of_transformers(model) and not is_pipeline(model)


def open_side(model: Any, name: str, tokenizer: Any, stack: ExitStack) -> Side:
    """Make a side of what a user gave.

    Args:
        model: A model, or where there is one.
        name: The argument that it came in, for messages.
        tokenizer: The tokenizer of a model of transformers that is no pipeline; None without one.
        stack: What had to be loaded lasts as long as this.

    Raises:
        InvalidRequestError: If it is no model that can be compared.
        SourceError: If there is nothing at the path or URI.
        InvalidModelError: If there is no such model, or it cannot be loaded.
        DependencyError: If it needs PyTorch and transformers, and they are not installed.
    """
    place = Place()
    if isinstance(model, str | Path):
        model, place = _load(model, name, stack)
    elif callable(getattr(model, "get_raw_model", None)):
        if model_id := getattr(model, "model_id", None):
            place = Place(f"models:/{model_id}", model_id)
        with suppress(NotImplementedError):  # a pyfunc of a flavor that gives no native model out
            model = model.get_raw_model()
    if isinstance(model, GenAIModel):
        return OnnxSide(model, place)
    if not is_of_transformers(model):
        raise InvalidRequestError(
            f"{name} must be {_EXPECTED}; got {describe_kind(model)}.", param=name
        )
    return _transformers_side(model, name, tokenizer if takes_tokenizer(model) else None, place)


def open_pipeline(folder: Path, name: str, place: Place) -> TransformersSide:
    """Load the pipeline of a saved model of ``mlflow.transformers``.

    Args:
        folder: The saved model.
        name: The argument that it came in, for messages.
        place: Where it came from.

    Raises:
        InvalidRequestError: If it is no pipeline that goes on with texts.
        DependencyError: If PyTorch or transformers is not installed.
    """
    return _transformers_side(_load_pipeline(folder, name), name, None, place)


def _transformers_side(model: Any, name: str, tokenizer: Any, place: Place) -> TransformersSide:
    try:
        parts = generator_parts(model, tokenizer)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}: {error.message}", param=name) from error
    if parts[0].config.is_encoder_decoder:
        raise InvalidRequestError(
            f"{name} must go on with its prompt; a {type(parts[0]).__name__} reads it with an"
            " encoder.",
            param=name,
        )
    from mlflow_phi3_onnx.evaluation.transformers_side import TransformersSide

    return TransformersSide(*parts, place)


def _load(model: str | Path, name: str, stack: ExitStack) -> tuple[Any, Place]:
    """Load what is at a path or URI, a native model or a pipeline; and tell where that is."""
    folder, uri = stack.enter_context(local_copy(model, expected=_EXPECTED, param=name))
    held = read_mlmodel(folder)
    place = Place(uri or folder.absolute().name, held and held.model_id)
    if held is None:
        return stack.enter_context(GenAIModel(folder)), place
    if FLAVOR_NAME in held.flavors:
        return stack.enter_context(load_model(folder)), place
    if TRANSFORMERS not in held.flavors:
        raise InvalidModelError(
            f"{name} has the flavors {', '.join(sorted(held.flavors))}; expected {FLAVOR_NAME}, or"
            f" {TRANSFORMERS} with a text-generation pipeline."
        )
    return _load_pipeline(folder, name), place


def _load_pipeline(folder: Path, name: str) -> Any:
    missing = [part for part in ("torch", "transformers") if importlib.util.find_spec(part) is None]
    if missing:
        raise DependencyError(
            f"{name} is a model of mlflow.transformers, which needs {' and '.join(missing)}:"
            " pip install 'mlflow-phi3-onnx[export]'."
        )
    from mlflow.transformers import load_model as load_pipeline

    return load_pipeline(str(folder))
