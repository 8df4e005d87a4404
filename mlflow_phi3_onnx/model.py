"""The native model: what ``mlflow_phi3_onnx.load_model`` returns."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import psutil

from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.artifact.repair import repairs
from mlflow_phi3_onnx.engine.base import Engine, Job
from mlflow_phi3_onnx.engine.inprocess import InProcessEngine
from mlflow_phi3_onnx.errors import (
    ContextLengthError,
    GenAIError,
    GenerationError,
    InvalidModelError,
    InvalidRequestError,
)
from mlflow_phi3_onnx.generation.genai_loop import GenAILoop
from mlflow_phi3_onnx.openai import responses
from mlflow_phi3_onnx.openai.parameters import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.openai.parse import Asked, parse_request
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from mlflow_phi3_onnx.request import ChatPrompt, Limits, Options, Result
from mlflow_phi3_onnx.runtime import PAD, NativeModel, available_threads
from mlflow_phi3_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mlflow_phi3_onnx.artifact.folder import ModelFolder

__all__ = ["GenAIModel"]

DEFAULT_MAX_BATCH_SIZE = 16
KV_SHARE_OF_AVAILABLE_MEMORY = 0.5


class GenAIModel:
    """A loaded model that chats, completes and continues text.

    It may be called from several threads at once; what is asked at the same time is computed
    together. Use it as a context manager, or call :meth:`close`, to free its memory.

    Args:
        path: A model folder, with ``genai_config.json``.
        model_config: Defaults of generation parameters and runtime settings; see the
            documentation's tables.
        task: The task whose parameters ``model_config`` may have.

    Raises:
        InvalidModelError: If the folder is not a whole model, or cannot be loaded.
        InvalidRequestError: If ``model_config`` is not what it may be.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model_config: Mapping[str, Any] | None = None,
        task: Task = CHAT,
    ) -> None:
        self._settings = Settings.check(model_config, task)
        self._folder = read_folder(path)
        self._tokenizer = PromptTokenizer(self._folder.path)
        self._engine: Engine = _start_engine(self._folder, self._tokenizer, self._settings)
        # The engine's thread keeps the engine alive, but must not outlive its model.
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __repr__(self) -> str:
        folder = self._folder
        return f"<GenAIModel {folder.model_type}, context length {folder.context_length:,}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is running and free the model. May be called again."""
        self._finalizer()

    @property
    def name(self) -> str:
        """The name that answers carry: the architecture's."""
        return self._folder.model_type

    @property
    def limits(self) -> Limits:
        """The model's context length, vocabulary and KV bytes per token."""
        folder = self._folder
        return Limits(folder.context_length, folder.vocab_size, folder.kv_bytes_per_token)

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

    def complete(self, prompt: str, **params: Any) -> dict[str, Any]:
        """Continue a prompt.

        Args:
            prompt: The whole prompt; control tokens in it are control tokens.
            params: Parameters of OpenAI's completions API; see the documentation's table.

        Returns:
            A ``text_completion`` object.

        Raises:
            InvalidRequestError: If a field is not what it may be, or the prompt is too long.
            UnsupportedParameterError: If a parameter is unknown or not supported.
        """
        return self.run(COMPLETIONS, [{"prompt": prompt, **params}])[0]

    def stream_complete(self, prompt: str, **params: Any) -> Generator[dict[str, Any]]:
        """Continue a prompt in ``text_completion`` chunks; see :meth:`complete`."""
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
        if isinstance(prompt, str):
            return self.run(TEXT, [{"prompt": prompt, **params}])[0]
        return self.run(TEXT, [{"prompt": text, **params} for text in prompt])

    def stream_generate(self, prompt: str, **params: Any) -> Generator[str]:
        """Continue a prompt in pieces of text; see :meth:`generate`."""
        return self.run_stream(TEXT, {"prompt": prompt, **params})

    def run(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Answer several requests together.

        All of them are checked before the first is computed.

        Args:
            task: What is asked for.
            requests: The fields of each request: ``messages`` or ``prompt``, and parameters.
            params: Parameters for all of them; a request's own fields come first.

        Returns:
            One answer a request, in order: OpenAI objects, or strings for ``text-generation``.

        Raises:
            InvalidRequestError: If a request is not what it may be; with several requests, the
                message says which.
        """
        asked: list[Asked] = []
        jobs: list[list[Job]] = []
        for number, fields in enumerate(requests):
            try:
                asked.append(self._parse(fields, task, params))
                if asked[-1].stream:
                    raise InvalidRequestError(
                        "stream is true, but this call answers as a whole. Use predict_stream or"
                        " one of the stream_ methods, or leave stream out.",
                        param="stream",
                    )
                jobs.append(self._jobs(asked[-1]))
            except GenAIError as error:
                if len(requests) == 1:
                    raise
                message = f"row {number}: {error.message}"
                raise type(error)(message, param=error.param) from error
        tickets = iter(self._engine.submit([job for group in jobs for job in group]))
        results = [
            Result(tuple(next(tickets).result() for _ in group), len(group[0].prompt))
            for group in jobs
        ]
        return [self._answer(task, a, r) for a, r in zip(asked, results, strict=True)]

    def run_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> Generator[Any]:
        """Answer one request in pieces: OpenAI chunks, or strings for ``text-generation``."""
        asked = self._parse(fields, task, params)
        if asked.stream is False:
            raise InvalidRequestError(
                "stream is false, but this call answers in pieces. Use predict, or leave stream"
                " out.",
                param="stream",
            )
        jobs = self._jobs(asked)
        return self._pieces(task, asked, jobs)

    def _pieces(self, task: Task, asked: Asked, jobs: list[Job]) -> Generator[Any]:
        stream = self._engine.stream(jobs)
        prompt_tokens = len(jobs[0].prompt)
        try:
            if task == CHAT:
                yield from responses.chat_chunks(asked, stream, prompt_tokens, self.name)
            elif task == COMPLETIONS:
                yield from responses.text_chunks(asked, stream, prompt_tokens, self.name)
            else:
                yield from (delta.text for _, delta in stream if delta.text)
        finally:
            stream.cancel()

    def _parse(
        self, fields: Mapping[str, Any], task: Task, params: Mapping[str, Any] | None
    ) -> Asked:
        return parse_request(
            fields,
            task,
            params=params,
            config=self._settings.generation,
            model_defaults=self._folder.search,
        )

    def _jobs(self, asked: Asked) -> list[Job]:
        prompt = asked.request.prompt
        options = asked.request.options
        if isinstance(prompt, ChatPrompt):
            ids = self._tokenizer.encode_chat(prompt)
        else:
            ids = self._tokenizer.encode(prompt.text)
        self._check_ids(ids, options)
        limit = self._max_tokens(len(ids), options)
        return [Job(ids, limit, options, index) for index in range(options.n)]

    def _check_ids(self, ids: NDArray[np.int32], options: Options) -> None:
        vocab_size = self._folder.vocab_size
        if len(ids) == 0:
            raise InvalidRequestError("The prompt is empty; it needs at least one token.")
        if int(ids.max()) >= vocab_size:
            raise InvalidModelError(
                f"The tokenizer gives ids beyond the model's vocabulary of {vocab_size:,}: they do"
                " not belong together."
            )
        if any(token >= vocab_size for token in options.sampling.logit_bias):
            raise InvalidRequestError(
                f"logit_bias must have token ids below {vocab_size:,}.", param="logit_bias"
            )

    def _max_tokens(self, prompt: int, options: Options) -> int:
        """Settle how many tokens an answer may have, or say why that many do not fit."""
        context = self._folder.context_length
        if prompt >= context:
            raise ContextLengthError(
                f"The prompt has {prompt:,} tokens; the model's maximum context length is"
                f" {context:,} tokens, the answer included. Shorten the prompt."
            )
        limit = options.max_length
        if limit is None:
            asked_for = options.max_tokens is not None
            limit = context if asked_for else self._folder.search.get("max_length", context)
        if options.strict_limit and limit > context and options.max_length is not None:
            raise ContextLengthError(
                f"max_length is {limit:,}; the model's maximum context length is {context:,}"
                " tokens.",
                param="max_length",
            )
        limit = min(limit, context)
        if prompt >= limit:
            raise ContextLengthError(
                f"The prompt has {prompt:,} tokens; max_length is {limit:,} tokens, the answer"
                " included. Raise max_length or shorten the prompt.",
                param="max_length",
            )
        if options.max_tokens is None:
            room = min(limit, max(self._engine.kv_tokens, prompt + 1)) - prompt
        else:
            room = min(limit - prompt, options.max_tokens)
            wanted = prompt + options.max_tokens
            if options.strict_limit and wanted > context:
                raise ContextLengthError(
                    f"The prompt has {prompt:,} tokens and max_tokens is {options.max_tokens:,},"
                    f" together {wanted:,}; the model's maximum context length is {context:,}"
                    " tokens. Lower max_tokens or shorten the prompt.",
                    param="max_tokens",
                )
        if options.min_tokens > room:
            raise InvalidRequestError(
                f"min_tokens is {options.min_tokens:,}, but the answer may have at most {room:,}"
                " tokens.",
                param="min_tokens",
            )
        return room

    def _answer(self, task: Task, asked: Asked, result: Result) -> Any:
        if task == CHAT:
            return responses.chat_response(asked, result, self.name)
        if task == COMPLETIONS:
            return responses.text_response(asked, result, self.name)
        return result.completions[0].text


def _start_engine(folder: ModelFolder, tokenizer: PromptTokenizer, settings: Settings) -> Engine:
    native = NativeModel(folder.path, _overlay(folder, settings))
    _smoke(native, folder)
    memory = settings.runtime.get("kv_cache_memory")
    if memory is None:
        memory = int(psutil.virtual_memory().available * KV_SHARE_OF_AVAILABLE_MEMORY)
    batch = settings.runtime.get("max_batch_size", DEFAULT_MAX_BATCH_SIZE)
    return InProcessEngine(
        GenAILoop(native, folder.eos_token_ids[0], max_batch_size=batch),
        tokenizer=tokenizer,
        eos=frozenset(folder.eos_token_ids),
        vocab_size=folder.vocab_size,
        kv_bytes_per_token=folder.kv_bytes_per_token,
        kv_cache_memory=memory,
    )


def _overlay(folder: ModelFolder, settings: Settings) -> dict[str, Any]:
    """Build what is laid over ``genai_config.json``: threads, our pad id, and repairs."""
    decoder: dict[str, Any] = dict(repairs(folder).get("model", {}).get("decoder", {}))
    own_threads = folder.decoder.get("session_options", {}).get("intra_op_num_threads")
    threads = settings.runtime.get("intra_op_num_threads", own_threads) or available_threads()
    decoder["session_options"] = {"intra_op_num_threads": threads}
    return {"model": {"pad_token_id": PAD, "decoder": decoder}}


def _smoke(native: NativeModel, folder: ModelFolder) -> None:
    """Run the graph once: a config that does not fit it loads, and fails only then."""
    try:
        generator = native.generator(1, 2)
        generator.append([np.zeros(1, dtype=np.int32)])
        width = generator.logits().shape[-1]
    except GenerationError as error:
        raise InvalidModelError(
            "The model loads but cannot run: genai_config.json does not fit its graph."
        ) from error
    if width != folder.vocab_size:
        raise InvalidModelError(
            f"genai_config.json says vocab_size {folder.vocab_size:,}, but the graph gives"
            f" {width:,} logits."
        )
