"""The native model: what ``mlflow_phi3_onnx.load_model`` returns."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mlflow_phi3_onnx.artifact.folder import ModelFolder, read_checked
from mlflow_phi3_onnx.artifact.lora.adapters import check_adapters
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.request import Limits
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.model.isolation import open_engine
from mlflow_phi3_onnx.model.measured import MeasuredModel
from mlflow_phi3_onnx.model.planning import Planner
from mlflow_phi3_onnx.model.running import TextEngine
from mlflow_phi3_onnx.model.settings import OF_SAVED_MODELS, OnError, Settings
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from typing_extensions import Self

    from mlflow_phi3_onnx.engine.base import Health, Load

__all__ = ["GenAIModel", "read_own"]


class GenAIModel(MeasuredModel):
    """A loaded model that chats, completes and continues text.

    It may be called from several threads at once; what is asked at the same time is computed
    together. Use it as a context manager, or call :meth:`close`, to free its memory.

    Each method that computes, but the one that times, has an awaited twin, whose name begins with
    ``a``: it takes the same, and answers and raises the same. Whatever takes long runs outside of
    the event loop. The request is checked when the twin is awaited, or its stream is first asked
    for a delta. Cancelling the task, or closing the stream, stops the generation.

    It can be pickled by its folder: a copy in another process checks and loads the model again.

    Args:
        path: A model folder, with ``genai_config.json``; or one that has been read.
        adapters: LoRA adapters that requests may choose, by name: each the path of an
            ``.onnx_adapter`` file or a PEFT folder. The model's graph must have inputs for them.
        model_config: Defaults of generation parameters and runtime settings; see the
            documentation's tables. Or one that has been checked.
        task: The task whose parameters ``model_config`` may have.
        origin: Where the model came from, as its MLmodel file tells.
        model_id: Its id in MLflow, to which traces of its requests are linked.
        policy: What the program around the model needs of its engine.

    Raises:
        InvalidModelError: If the folder is not a whole model, or cannot be loaded, or an adapter
            does not fit it.
        InvalidRequestError: If ``model_config`` or ``adapters`` is not what it may be.
    """

    def __init__(
        self,
        path: str | Path | ModelFolder,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        model_config: Mapping[str, Any] | Settings | None = None,
        task: Task = CHAT,
        origin: Mapping[str, Any] | None = None,
        model_id: str | None = None,
        policy: ServingPolicy = ServingPolicy(),
    ) -> None:
        if isinstance(model_config, Settings):
            settings = model_config
        else:
            settings = Settings.check(model_config, task)
        checked = check_adapters(adapters)
        folder = path if isinstance(path, ModelFolder) else read_own(path, settings)
        tokenizer = PromptTokenizer(folder.tokenizer_path)
        self._adapters = tuple(checked)
        self._engine = open_engine(folder, tokenizer, settings.engine, policy, checked)
        kv_tokens = self._engine.kv_tokens
        planner = Planner(folder, tokenizer, kv_tokens, settings, self._adapters, model_id)
        texts = TextEngine(self._engine, tokenizer, frozenset(folder.eos_token_ids))
        super().__init__(tokenizer, planner, texts)
        self._folder = folder
        self._places = (folder.path.absolute(), folder.tokenizer_path.absolute(), folder.saved)
        self._given = {
            "adapters": {name: Path(file).absolute() for name, file in checked.items()},
            "model_config": settings,
            "task": task,
            "origin": origin,
            "model_id": model_id,
            "policy": policy,
        }
        self._origin = origin or {}
        self._execution_provider = settings.engine.provider(folder)
        # The engine's thread keeps the engine alive, but must not outlive its model.
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __repr__(self) -> str:
        folder = self._folder
        return (
            f"<GenAIModel {folder.model_type}, context length {folder.context_length:,},"
            f" {self.execution_provider}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what is needed to load the model again, from the same folder, elsewhere."""
        return _load_again, (*self._places, self._given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is running and free the model. May be called again."""
        self._finalizer()

    @property
    def name(self) -> str:
        """The name that responses carry: the architecture's, where no adapter is chosen."""
        return self._folder.model_type

    @property
    def execution_provider(self) -> str:
        """What computes it: ``cpu``, ``cuda``, ``dml``, ..."""
        return self._execution_provider

    @property
    def loop(self) -> str:
        """What runs it: ``genai`` or ``slots``."""
        return self._engine.loop_name

    @property
    def folder(self) -> ModelFolder:
        """The model folder that it was loaded from."""
        return self._folder

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where the model came from, where it was loaded from an artifact; else empty."""
        return self._origin

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that requests may choose."""
        return self._adapters

    @property
    def limits(self) -> Limits:
        """The model's context length, vocabulary and KV bytes per token."""
        folder = self._folder
        return Limits(folder.context_length, folder.vocab_size, folder.kv_bytes_per_token)

    @property
    def load(self) -> Load:
        """How many sequences are computed at this moment, and how many wait for that."""
        return self._engine.load

    @property
    def health(self) -> Health:
        """How many of its worker processes have died, and whether it takes no requests for that."""
        return self._engine.health

    def chat(self, messages: Sequence[Mapping[str, Any]], **params: Any) -> dict[str, Any]:
        """Answer a conversation.

        Args:
            messages: Objects with ``role`` and ``content``, as in OpenAI's chat API.
            params: Parameters of OpenAI's chat API; see the documentation's table.

        Returns:
            A ``chat.completion`` object.

        Raises:
            InvalidRequestError: If a field is not what it may be, or the prompt is too long.
            UnsupportedParameterError: If a parameter is unknown or not supported.
        """
        return self.run(CHAT, [{"messages": messages, **params}])[0]

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], **params: Any
    ) -> Generator[dict[str, Any]]:
        """Answer a conversation in ``chat.completion.chunk`` objects; see :meth:`chat`.

        The request is checked at once. Closing the iterator stops the generation.
        """
        return self.run_stream(CHAT, {"messages": messages, **params})

    def complete(
        self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], **params: Any
    ) -> dict[str, Any]:
        """Continue one prompt or several.

        Args:
            prompt: A whole prompt, in which control tokens are control tokens; or several; or the
                token ids of one, or of several.
            params: Parameters of OpenAI's completions API; see the documentation's table.

        Returns:
            A ``text_completion`` object. Its choices are the ``n`` completions of the first prompt,
            then those of the second, and so on.

        Raises:
            InvalidRequestError: If a field is not what it may be, or a prompt is too long.
            UnsupportedParameterError: If a parameter is unknown or not supported.
        """
        return self.run(COMPLETIONS, [{"prompt": prompt, **params}])[0]

    def stream_complete(
        self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], **params: Any
    ) -> Generator[dict[str, Any]]:
        """Continue one prompt or several in ``text_completion`` chunks; see :meth:`complete`."""
        return self.run_stream(COMPLETIONS, {"prompt": prompt, **params})

    @overload
    def generate(self, prompt: str, **params: Any) -> str: ...

    @overload
    def generate(self, prompt: list[str], **params: Any) -> list[str]: ...

    def generate(self, prompt: str | list[str], **params: Any) -> str | list[str]:
        """Continue one prompt or many; text in, text out.

        Args:
            prompt: A whole prompt, or several to compute together.
            params: Generation parameters, the same for all prompts.

        Raises:
            InvalidRequestError: If a field is not what it may be, or a prompt is too long.
            UnsupportedParameterError: If a parameter is unknown or not supported.
        """
        if _is_one(prompt):
            return self.run(TEXT, [{"prompt": prompt, **params}])[0]
        return self.run(TEXT, [{"prompt": text, **params} for text in prompt])

    def stream_generate(self, prompt: str, **params: Any) -> Generator[str]:
        """Continue a prompt in deltas of text; see :meth:`generate`."""
        return self.run_stream(TEXT, {"prompt": prompt, **params})

    async def achat(self, messages: Sequence[Mapping[str, Any]], **params: Any) -> dict[str, Any]:
        """Answer a conversation, as ``chat``."""
        return (await self.arun(CHAT, [{"messages": messages, **params}]))[0]

    def astream_chat(
        self, messages: Sequence[Mapping[str, Any]], **params: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Answer a conversation in chunks, as ``stream_chat``."""
        return self.arun_stream(CHAT, {"messages": messages, **params})

    async def acomplete(
        self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], **params: Any
    ) -> dict[str, Any]:
        """Continue one prompt or several, as ``complete``."""
        return (await self.arun(COMPLETIONS, [{"prompt": prompt, **params}]))[0]

    def astream_complete(
        self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], **params: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Continue one prompt or several in chunks, as ``stream_complete``."""
        return self.arun_stream(COMPLETIONS, {"prompt": prompt, **params})

    @overload
    async def agenerate(self, prompt: str, **params: Any) -> str: ...

    @overload
    async def agenerate(self, prompt: list[str], **params: Any) -> list[str]: ...

    async def agenerate(self, prompt: str | list[str], **params: Any) -> str | list[str]:
        """Continue one prompt or many, text in and text out, as ``generate``."""
        if _is_one(prompt):
            return (await self.arun(TEXT, [{"prompt": prompt, **params}]))[0]
        return await self.arun(TEXT, [{"prompt": text, **params} for text in prompt])

    def astream_generate(self, prompt: str, **params: Any) -> AsyncGenerator[str]:
        """Continue a prompt in deltas of text, as ``stream_generate``."""
        return self.arun_stream(TEXT, {"prompt": prompt, **params})

    def run(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
        *,
        on_error: OnError = "raise",
    ) -> list[Any]:
        """Answer several requests together.

        All of them are checked before the first is computed.

        Args:
            task: What is asked for.
            requests: The fields of each request: ``messages`` or ``prompt``, and parameters.
            params: Parameters for all of them; a request's own fields come first.
            on_error: What becomes of a request that cannot be answered. With ``"row"``, OpenAI's
                error object, ``{"error": {...}}``, stands in the place of its response.

        Returns:
            One response a request, in order: OpenAI objects, or strings for ``text-generation``.

        Raises:
            InvalidRequestError: If a request is not what it may be; with several requests, the
                message says which.
        """
        return self._texts.run(self._planner.plan_requests(task, requests, params, on_error))

    def run_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> Generator[Any]:
        """Answer one request in deltas: OpenAI chunks, or strings for ``text-generation``."""
        return self._texts.write(self._planner.plan_request(task, fields, params, stream=True))

    async def arun(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
        *,
        on_error: OnError = "raise",
    ) -> list[Any]:
        """Answer several requests together, as ``run``."""
        return await self._texts.arun(
            lambda: self._planner.plan_requests(task, requests, params, on_error)
        )

    def arun_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Any]:
        """Answer one request in deltas, as ``run_stream``."""
        return self._texts.awrite(
            lambda: self._planner.plan_request(task, fields, params, stream=True)
        )


def _is_one(prompt: Any) -> bool:
    """Whether it is for one request to check, and not a row of several prompts."""
    if isinstance(prompt, str | bytes | Mapping) or not isinstance(prompt, Iterable):
        return True
    return hasattr(prompt, "columns")  # a data frame gives the names of its columns


def read_own(path: str | Path, settings: Settings) -> ModelFolder:
    """Read a folder that is not an artifact's, whose files nothing else has looked at.

    Raises:
        InvalidModelError: If it is not a whole model.
        InvalidRequestError: If it is no path, or a setting is one of saved models.
    """
    if given := {"verify"} if settings.verify else set(settings.pyfunc):
        name = min(given)
        raise InvalidRequestError(
            f"model_config: {name} is {OF_SAVED_MODELS[name]}. Leave it out of model_config.",
            param=name,
        )
    if not isinstance(path, str | Path):
        raise InvalidRequestError(
            f"path must be a string or a pathlib.Path; got {describe_kind(path)}.", param="path"
        )
    return read_checked(path)


def _load_again(
    path: Path,
    tokenizer_path: Path,
    saved: Callable[[], object] | None,
    given: Mapping[str, Any],
) -> GenAIModel:
    return GenAIModel(read_checked(path, tokenizer_path, saved), **given)
