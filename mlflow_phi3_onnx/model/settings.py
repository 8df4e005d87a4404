"""A model's saved configuration: generation defaults and settings of the runtime, by task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core import checks
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.parameters import PARAMETERS, Task
from mlflow_phi3_onnx.openai.parse import check_parameters
from mlflow_phi3_onnx.openai.tools.formats.registry import SETTINGS as TOOL_FORMATS
from mlflow_phi3_onnx.runtime.genai import MAX_BATCH_SIZE
from mlflow_phi3_onnx.runtime.providers import PROVIDERS
from mlflow_phi3_onnx.runtime.session_options import (
    refused_provider_options,
    refused_session_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RUNTIME_SETTINGS", "VERIFY_LEVELS", "Settings", "config_keys"]

LOOPS = ("auto", "genai", "slots")
VERIFY_LEVELS = ("size", "hash", "off")

# What has a setting of its own.
_NOT_SESSION_OPTIONS = {"intra_op_num_threads", "provider_options"}


def _session_options(value: Any) -> dict[str, Any]:
    options = checks.json_object(value)
    if _NOT_SESSION_OPTIONS & options.keys() or any(refused_session_options(options)):
        raise ValueError
    return options


def _provider_options(value: Any) -> dict[str, str]:
    options = checks.json_object(value)
    if not all(isinstance(v, str) for v in options.values()):
        raise ValueError
    if any(refused_provider_options(options)):
        raise ValueError
    return options


RUNTIME_SETTINGS: Mapping[str, tuple[str, str, Any]] = {
    "loop": (
        "What runs the model. genai: onnxruntime-genai's generator, for every model and device."
        " slots: continuous batching on ONNX Runtime, for plain decoder graphs on CPU. auto: slots"
        " where the model qualifies. Default: auto under `mlflow models serve`, else genai.",
        "'auto', 'genai' or 'slots'",
        lambda value: checks.one_of(value, LOOPS),
    ),
    "prefix_cache": (
        "Whether what was computed of past requests is kept, so that a prompt that begins like one"
        " of them is computed only from where it differs. Default: true.",
        "true or false",
        checks.boolean,
    ),
    "intra_op_num_threads": (
        "Threads that compute one operator. Default: the least of the processors that the process"
        " may run on, its container's quota of processor time, and OMP_NUM_THREADS.",
        "an integer from 1 to 1024",
        checks.integer(1, 1024),
    ),
    "max_batch_size": (
        "The most rows that are computed together. Default: 16.",
        f"an integer from 1 to {MAX_BATCH_SIZE}",
        checks.integer(1, MAX_BATCH_SIZE),
    ),
    "kv_cache_memory": (
        "Bytes of KV cache that all running requests may take together. Default: half of the"
        " memory that is available, within the container's limit, when the model is loaded.",
        "an integer from 1",
        checks.integer(1, 2**63 - 1),
    ),
    "execution_provider": (
        "What computes the model. Of a model with variants, it chooses the one for this provider;"
        " a model of one form is run with it, whatever its folder asks for. Default: the first"
        " variant that this machine can run, or what the folder asks for.",
        f"one of {', '.join(PROVIDERS)}",
        lambda value: checks.one_of(value, PROVIDERS),
    ),
    "provider_options": (
        "Options of the execution provider, as ONNX Runtime documents them. Default: the folder's.",
        "an object of texts, of options that are known to load no library and write no file",
        _provider_options,
    ),
    "session_options": (
        "Options of ONNX Runtime's session, laid over those of the folder's genai_config.json; for"
        " the genai loop. Default: none.",
        "an object of options that are known to write no file and load no library, without"
        " intra_op_num_threads, provider_options and custom_ops_library",
        _session_options,
    ),
    "tool_format": (
        "The form in which the model writes tool calls, which are read and enforced in it. auto:"
        " what the chat template and the control tokens tell; where they tell none, calls stay text"
        " and cannot be required. none: the same, whatever they tell. Default: auto.",
        f"one of {', '.join(TOOL_FORMATS)}",
        lambda value: checks.one_of(value, TOOL_FORMATS),
    ),
    "verify": (
        "How a saved model's files are checked before they are read. size: each is there with its"
        " size and no other is, and those up to 4 MiB have their SHA-256. hash: all of them have"
        " it. off: not at all. Default: size; hash where the weights are in a repository.",
        f"one of {', '.join(VERIFY_LEVELS)}",
        lambda value: checks.one_of(value, VERIFY_LEVELS),
    ),
}
"""What each setting does, what it may be, and its check, by name."""


@dataclass(frozen=True)
class Settings:
    """A checked configuration.

    Attributes:
        generation: Generation parameters, clean.
        runtime: Settings of the runtime, clean.
    """

    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    runtime: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def check(cls, config: Mapping[str, Any] | None, task: Task) -> Settings:
        """Check a ``model_config``.

        Args:
            config: Generation parameters and runtime settings by name; None values are left out.
            task: The task that the parameters are for.

        Raises:
            InvalidRequestError: If a value is not what it may be.
            UnsupportedParameterError: If a key is not one of :func:`config_keys`.
        """
        config = {key: value for key, value in (config or {}).items() if value is not None}
        table = PARAMETERS[task]
        for name in config:
            parameter = table.get(name)
            if parameter and parameter.status != "refused" and not parameter.configurable:
                raise UnsupportedParameterError(
                    f"model_config: {name} belongs to a single request, not to a saved model.",
                    param=name,
                )
        runtime = {
            name: _check_setting(name, value)
            for name, value in config.items()
            if name in RUNTIME_SETTINGS
        }
        generation = check_parameters(
            config, task, known=RUNTIME_SETTINGS.keys(), where="model_config: "
        )
        if generation.get("max_tokens") == 0:
            raise InvalidRequestError(
                "model_config: max_tokens must be an integer from 1; got 0. A single request may"
                " have 0, with echo.",
                param="max_tokens",
            )
        return cls(generation, runtime)


def config_keys(task: Task) -> list[str]:
    """List every key that a task's ``model_config`` may have."""
    generation = [name for name, row in PARAMETERS[task].items() if row.configurable]
    return [*generation, *RUNTIME_SETTINGS]


def _check_setting(name: str, value: Any) -> Any:
    _, allowed, check = RUNTIME_SETTINGS[name]
    try:
        return check(value)
    except ValueError as error:
        raise InvalidRequestError(
            f"model_config: {name} must be {allowed}; got {checks.describe_kind(value)}.",
            param=name,
        ) from error
