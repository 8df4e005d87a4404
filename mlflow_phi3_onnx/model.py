"""The native model: what ``mlflow_phi3_onnx.load_model`` returns."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, overload

from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError
from mlflow_phi3_onnx.loading import start_engine
from mlflow_phi3_onnx.openai import responses
from mlflow_phi3_onnx.openai.parameters import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.openai.parse import Asked, parse_request
from mlflow_phi3_onnx.planning import Planner
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from mlflow_phi3_onnx.request import Limits, Result
from mlflow_phi3_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from mlflow_phi3_onnx.engine.base import Engine, Job

__all__ = ["GenAIModel"]


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
        self._engine: Engine = start_engine(self._folder, self._tokenizer, self._settings)
        self._planner = Planner(self._folder, self._tokenizer, self._engine.kv_tokens)
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
                jobs.append(self._planner.jobs(asked[-1]))
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
        jobs = self._planner.jobs(asked)
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

    def _answer(self, task: Task, asked: Asked, result: Result) -> Any:
        if task == CHAT:
            return responses.chat_response(asked, result, self.name)
        if task == COMPLETIONS:
            return responses.text_response(asked, result, self.name)
        return result.completions[0].text
