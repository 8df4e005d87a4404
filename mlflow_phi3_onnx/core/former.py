"""Names that other flavors have and this one has not, and what to use instead."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from mlflow_phi3_onnx.core.options import Option, read, table

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMER_NAMES", "tells_former_names"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_named = partial(Option, status="refused")
_DEVICE = "execution_provider says what computes the model."
_PRECISION = "Where a model is converted, precision of log_model says the form of its weights."

FORMER_NAMES = table(
    _named("transformers_model", "Give the pipeline or the model as model."),
    _named("onnx_model", "Give the folder of the graph and its tokenizer as model."),
    _named("processor", "Give a processor as tokenizer: its tokenizer is used."),
    _named("torch_dtype", _PRECISION),
    _named("dtype", _PRECISION),
    _named("device", _DEVICE),
    _named("device_map", _DEVICE),
    _named("onnx_execution_providers", _DEVICE),
    _named("onnx_session_options", "Give session_options in model_config."),
    _named("save_as_external_data", "A graph is saved with its data as they are: leave it out."),
    _named("trust_remote_code", "No code out of a repository is run: leave it out.", default=False),
    _named(
        "return_full_text",
        "Answers are without the prompt; only llm/v1/completions can repeat it, by echo.",
        default=False,
    ),
    _named("prompt_template", "Write it into the chat template of the tokenizer."),
    _named("base_model_path", "Give a LoRA adapter in adapters, or merge it into its model first."),
    _named("model_card", "A card beside the weights is saved; give other files in extra_files."),
    _named("inference_config", "Give it as model_config."),
    _named("return_type", "load_model gives a GenAIModel, and mlflow.pyfunc.load_model a pyfunc."),
)
"""Arguments and configuration keys of ``mlflow.transformers`` and ``mlflow.onnx``, with advice."""


def tells_former_names(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function refuse arguments that other flavors have by the advice that there is.

    Raises:
        UnsupportedParameterError: If one is given.
    """

    @wraps(function)
    def telling(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        former = {name: value for name, value in kwargs.items() if name in FORMER_NAMES}
        read(FORMER_NAMES, former, "an argument", function.__name__)
        return function(*args, **kwargs)

    return telling
