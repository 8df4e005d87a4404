"""A model's saved configuration: generation defaults and settings of the runtime, by task."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from mlflow_phi3_onnx.artifact.manifest import Verify
from mlflow_phi3_onnx.core.checks import Check, boolean, integer, json_object, one_of
from mlflow_phi3_onnx.core.former import FORMER_NAMES
from mlflow_phi3_onnx.core.options import Option, read, table
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, Task
from mlflow_phi3_onnx.engine.options import EngineOptions, Isolation, LoopName
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.reasoning.harmony import HARMONY
from mlflow_phi3_onnx.openai.reasoning.registry import REASONING_SETTINGS
from mlflow_phi3_onnx.openai.tools.formats.registry import SETTINGS as TOOL_FORMATS
from mlflow_phi3_onnx.runtime.genai import MAX_BATCH_SIZE
from mlflow_phi3_onnx.runtime.providers import PROVIDERS
from mlflow_phi3_onnx.runtime.session_options import (
    refused_provider_options,
    refused_session_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = [
    "OF_SAVED_MODELS",
    "ON_ERROR",
    "PYFUNC_SETTINGS",
    "RUNTIME_SETTINGS",
    "VERIFY_LEVELS",
    "OnError",
    "Settings",
    "config_keys",
]


OnError: TypeAlias = Literal["raise", "row"]

VERIFY_LEVELS: tuple[Verify, ...] = get_args(Verify)

# What has a setting of its own.
_NOT_SESSION_OPTIONS = {"intra_op_num_threads", "provider_options"}


def _session_options(value: Any) -> dict[str, Any]:
    options = json_object(value)
    if _NOT_SESSION_OPTIONS & options.keys() or any(refused_session_options(options)):
        raise ValueError
    return options


def _provider_options(value: Any) -> dict[str, str]:
    options = json_object(value)
    texts = all(isinstance(value, str) for value in options.values())
    if not texts or any(refused_provider_options(options)):
        raise ValueError
    return options


_TASK = Option("task", "What the model is for.", one_of(*ALL_TASKS))
_setting = partial(Option, configurable=True)

RUNTIME_SETTINGS = table(
    _setting(
        "loop",
        "What runs the model. genai: onnxruntime-genai's generator, for every model and device."
        " slots: continuous batching on ONNX Runtime, for plain decoder graphs on CPU. auto: slots"
        " where the model qualifies.",
        one_of(*get_args(LoopName)),
        EngineOptions.loop,
        "auto in a server, else genai",
    ),
    _setting(
        "isolation",
        "The process that the model runs in. inline: this one. worker: a child process, so that"
        " this one is never held up by the model, and outlives a crash of the runtime. shared: a"
        " worker of all processes of this user and machine that load the same model with the same"
        " settings, so that its weights are in memory once; not on Windows.",
        one_of(*get_args(Isolation)),
        EngineOptions.isolation,
        "inline",
    ),
    _setting(
        "prefix_cache",
        "Whether what was computed of past requests is kept, so that a prompt that begins like one"
        " of them is computed only from where it differs.",
        boolean,
        EngineOptions.prefix_cache,
    ),
    _setting(
        "intra_op_num_threads",
        "Threads that compute one operator.",
        integer(1, 1024),
        EngineOptions.intra_op_num_threads,
        "the folder's, else the least of the processors that the process may run on, its"
        " container's quota of processor time, and OMP_NUM_THREADS",
    ),
    _setting(
        "max_batch_size",
        "The most sequences that are computed together.",
        integer(1, MAX_BATCH_SIZE),
        EngineOptions.max_batch_size,
    ),
    _setting(
        "kv_cache_memory",
        "Bytes of KV cache that all running requests may take together.",
        integer(1, bits=64),
        EngineOptions.kv_cache_memory,
        "half of the memory that is available, within the container's limit, when the model is"
        " loaded; a server's models and MLflow's workers share it out",
    ),
    _setting(
        "execution_provider",
        "What computes the model. Of a model with variants, it chooses the one for this provider;"
        " a model of one form is run with it, whatever its folder asks for.",
        one_of(*PROVIDERS),
        EngineOptions.execution_provider,
        "the first variant that this machine can run, or what the folder asks for",
    ),
    _setting(
        "provider_options",
        "Options of the execution provider, as ONNX Runtime documents them.",
        Check(
            "an object of texts, of options that are known to load no library and write no file",
            _provider_options,
        ),
        otherwise="the folder's",
    ),
    _setting(
        "session_options",
        "Options of ONNX Runtime's session, laid over those of the folder's genai_config.json; for"
        " the genai loop.",
        Check(
            "an object of options that are known to write no file and load no library, without"
            " intra_op_num_threads, provider_options and custom_ops_library",
            _session_options,
        ),
    ),
    _setting(
        "tool_format",
        "The form in which the model writes tool calls, which are read and enforced in it. auto:"
        " what the chat template and the control tokens tell; where they tell none, calls stay text"
        " and cannot be required. none: the same, whatever they tell.",
        one_of(*TOOL_FORMATS),
        "auto",
    ),
    _setting(
        "reasoning_format",
        "How the model marks what it thinks before it answers, which chat puts into"
        " reasoning_content. auto: what the chat template and the control tokens tell. none: it"
        " stays a part of the content.",
        one_of(*REASONING_SETTINGS),
        "auto",
    ),
    _setting(
        "verify",
        "How a saved model's files are checked before they are read. size: each is there with its"
        " size and no other is, and those up to 4 MiB have their SHA-256. hash: all of them have"
        " it. off: not at all.",
        one_of(*VERIFY_LEVELS),
        otherwise="size; hash where the weights are in a repository",
    ),
)
"""The settings of the runtime, by name: those of the engine, and others."""

ON_ERROR = _setting(
    "on_error",
    "What a pyfunc's predict does with a row that cannot be answered. raise: it fails, and no row"
    " is answered. row: an error object stands in the row's place, with OpenAI's error, and all"
    " others have their answers; where the output is text, it is that object's JSON text.",
    one_of(*get_args(OnError)),
    "raise",
)

PYFUNC_SETTINGS = table(
    _setting(
        "output",
        "What a pyfunc's predict answers with. openai: OpenAI's objects. text: the text of the"
        " first choice. json: OpenAI's objects as JSON text. Of text-generation, it is text.",
        one_of("openai", "text", "json"),
        "openai",
    ),
    ON_ERROR,
)
"""The settings of a pyfunc, by name, which ``params`` may have too."""

OF_SAVED_MODELS = {
    "verify": "for saved models: of a plain folder, nothing is known to compare its files with",
    **dict.fromkeys(PYFUNC_SETTINGS, "for pyfuncs, as mlflow.pyfunc.load_model returns them"),
}
"""The settings that a :class:`GenAIModel` of a plain folder refuses, and why."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A checked configuration.

    Attributes:
        generation: Generation parameters, clean.
        engine: How the model is run.
        verify: How a saved model's files are checked, where that was said.
        tool_format: How the model writes tool calls, or ``auto``.
        reasoning_format: How it marks reasoning, or ``auto``.
        pyfunc: The settings of a pyfunc that were given.
    """

    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    engine: EngineOptions = field(default_factory=EngineOptions)
    verify: Verify | None = None
    tool_format: str = "auto"
    reasoning_format: str = "auto"
    pyfunc: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def check(cls, config: Mapping[str, Any] | None, task: Task) -> Settings:
        """Check a ``model_config``.

        Args:
            config: Generation parameters and runtime settings by name; None values are left out.
            task: The task that the parameters are for.

        Raises:
            InvalidRequestError: If there is no such task, or a value is not what it may be.
            UnsupportedParameterError: If a key is not one of :func:`config_keys`.
        """
        _TASK.read(task, shown=True)
        options = {**FORMER_NAMES, **_options(task)}
        clean = read(options, config, f"a parameter of {task}", "model_config", shown=True)
        for name in clean:
            if not options[name].configurable:
                raise UnsupportedParameterError(
                    f"model_config: {name} belongs to a single request, not to a saved model.",
                    param=name,
                )
        if clean.get("max_tokens") == 0:
            raise InvalidRequestError(
                "model_config: max_tokens must be an integer from 1; got 0. A single request may"
                " have 0, with echo.",
                param="max_tokens",
            )
        runtime = {name: clean.pop(name) for name in RUNTIME_SETTINGS if name in clean}
        own: dict[str, Any] = {"verify": runtime.pop("verify", None)}
        own["pyfunc"] = {name: clean.pop(name) for name in PYFUNC_SETTINGS if name in clean}
        own |= _formats(
            *(runtime.pop(name, "auto") for name in ("tool_format", "reasoning_format"))
        )
        return cls(generation=clean, engine=EngineOptions(**runtime), **own)


def _formats(tools: str, reasoning: str) -> dict[str, str]:
    """Settle the forms of calls and of reasoning; harmony is one form of both."""
    given = {"tool_format": tools, "reasoning_format": reasoning}
    if HARMONY.name not in given.values():
        return given
    for name, form in given.items():
        if form not in ("auto", HARMONY.name):
            raise InvalidRequestError(
                f"model_config: {name} is {form!r} beside {HARMONY.name!r}, which is one form of"
                f" calls and of reasoning. Leave {name} out.",
                param=name,
            )
    return dict.fromkeys(given, HARMONY.name)


def config_keys(task: Task) -> list[str]:
    """List every key that a task's ``model_config`` may have."""
    return [name for name, option in _options(task).items() if option.configurable]


def _options(task: Task) -> dict[str, Option]:
    return {**PARAMETERS[task], **RUNTIME_SETTINGS, **PYFUNC_SETTINGS}
