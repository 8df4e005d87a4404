"""The native model: what ``mlflow_phi3_onnx.load_model`` returns."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, overload

from mlflow_phi3_onnx.artifact.folder import ModelFolder, read_folder
from mlflow_phi3_onnx.artifact.lora.adapters import check_adapters, fitted
from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.core.request import Limits
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.model.assembly import TextEngine
from mlflow_phi3_onnx.model.awaited import AsyncMethods
from mlflow_phi3_onnx.model.planning import PlannedRequest, Planner
from mlflow_phi3_onnx.model.scoring import (
    is_one,
    plan_greedy,
    plan_perplexity,
    plan_token_logprobs,
)
from mlflow_phi3_onnx.model.settings import Settings
from mlflow_phi3_onnx.model.start import start_engine
from mlflow_phi3_onnx.model.text import TextMethods
from mlflow_phi3_onnx.model.tool_format import tool_format_of
from mlflow_phi3_onnx.openai.parameters import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self


__all__ = ["GenAIModel"]


class GenAIModel(AsyncMethods, TextMethods):
    """A loaded model that chats, completes and continues text.

    It may be called from several threads at once; what is asked at the same time is computed
    together. Use it as a context manager, or call :meth:`close`, to free its memory.

    Args:
        path: A model folder, with ``genai_config.json``; or one that has been read.
        adapters: LoRA adapters that requests may choose, by name: each the path of an
            ``.onnx_adapter`` file or a PEFT folder. The model's graph must have inputs for them.
        model_config: Defaults of generation parameters and runtime settings; see the
            documentation's tables. Or one that has been checked.
        task: The task whose parameters ``model_config`` may have.
        origin: Where the model came from, as its MLmodel file tells.
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
        policy: ServingPolicy = ServingPolicy(),
    ) -> None:
        if isinstance(model_config, Settings):
            settings = model_config
        else:
            settings = Settings.check(model_config, task)
        checked = check_adapters(adapters)
        if not isinstance(path, ModelFolder) and settings.verify is not None:
            raise InvalidRequestError(
                "model_config: verify is for saved models: of a plain folder, nothing is known to"
                " compare its files with. Leave it out.",
                param="verify",
            )
        self._folder = path if isinstance(path, ModelFolder) else read_folder(path)
        self._origin = origin or {}
        self._tokenizer = PromptTokenizer(self._folder.tokenizer_path)
        with fitted(checked, self._folder) as files:
            self._adapters = tuple(files)
            self._engine = start_engine(
                self._folder, self._tokenizer, settings.engine, policy, files
            )
        self._execution_provider = settings.engine.provider(self._folder)
        self._planner = Planner(
            self._folder,
            self._tokenizer,
            self._engine.kv_tokens,
            settings.generation,
            self._adapters,
            tool_format_of(self._tokenizer, settings.tool_format),
        )
        eos = frozenset(self._folder.eos_token_ids)
        self._texts = TextEngine(self._engine, self._tokenizer, eos)
        # The engine's thread keeps the engine alive, but must not outlive its model.
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __repr__(self) -> str:
        folder = self._folder
        return (
            f"<GenAIModel {folder.model_type}, context length {folder.context_length:,},"
            f" {self.execution_provider}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is running and free the model. May be called again."""
        self._finalizer()

    @property
    def name(self) -> str:
        """The name that answers carry: the architecture's, where no adapter is chosen."""
        return self._folder.model_type

    @property
    def execution_provider(self) -> str:
        """What computes it: ``cpu``, ``cuda``, ``dml``, ..."""
        return self._execution_provider

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
            A ``text_completion`` object. Its choices are the ``n`` answers to the first prompt,
            then those to the second, and so on.

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
        if isinstance(prompt, str):
            return self.run(TEXT, [{"prompt": prompt, **params}])[0]
        return self.run(TEXT, [{"prompt": text, **params} for text in prompt])

    def stream_generate(self, prompt: str, **params: Any) -> Generator[str]:
        """Continue a prompt in pieces of text; see :meth:`generate`."""
        return self.run_stream(TEXT, {"prompt": prompt, **params})

    def greedy_tokens(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue a prompt of token ids with the most likely token, again and again.

        The raw logits alone decide: no sampling, penalty or stop sequence of the saved
        configuration or of the model's own defaults counts. That is how models are compared.

        Args:
            ids: The prompt.
            max_tokens: The most tokens to generate.

        Returns:
            The ids of the answer, the one that ended it included.

        Raises:
            InvalidRequestError: If an argument is not what it may be.
            ContextLengthError: If the prompt, or what is asked for, is too long.
        """
        return self._respond([plan_greedy(ids, max_tokens, self._planner)])[0]

    @overload
    def token_logprobs(
        self, text: str | list[int], top_logprobs: int = 0
    ) -> list[dict[str, Any]]: ...

    @overload
    def token_logprobs(
        self, text: list[str] | list[list[int]], top_logprobs: int = 0
    ) -> list[list[dict[str, Any]]]: ...

    def token_logprobs(
        self, text: str | list[int] | list[str] | list[list[int]], top_logprobs: int = 0
    ) -> list[Any]:
        """Report how likely each token of a text is after those before it.

        Args:
            text: A text, tokenized as by :meth:`tokenize`, or its token ids; or several, to compute
                together.
            top_logprobs: How many of the most likely tokens to report at each position, from 0 to
                20.

        Returns:
            For each text, one object a token: ``token_id``, ``token`` (its text), ``bytes``,
            ``logprob`` (the natural logarithm of its probability, None for the first token, which
            nothing comes before) and ``top_logprobs`` (such objects, most likely first).

        Raises:
            InvalidRequestError: If an argument is not what it may be, or a text is empty.
            ContextLengthError: If a text has more tokens than the model's context.
        """
        scores = plan_token_logprobs(text, top_logprobs, self._planner, self._tokenizer)
        found = self._respond(scores)
        return found[0] if is_one(text) else found

    @overload
    def perplexity(self, text: str | list[int]) -> float: ...

    @overload
    def perplexity(self, text: list[str] | list[list[int]]) -> list[float]: ...

    def perplexity(
        self, text: str | list[int] | list[str] | list[list[int]]
    ) -> float | list[float]:
        """Measure how surprised the model is by a text; 1 means not at all.

        It is ``exp(-(log p(t2 | t1) + ... + log p(tN | t1 ... tN-1)) / (N - 1))`` for the tokens
        ``t1 ... tN``, with natural logarithms: the exponential of the mean negative
        log-likelihood, in nats, of all tokens but the first.

        Args:
            text: A text, tokenized as by :meth:`tokenize`, or its token ids; or several, to compute
                together.

        Raises:
            InvalidRequestError: If a text has fewer than two tokens.
            ContextLengthError: If a text has more tokens than the model's context.
        """
        found = self._respond(plan_perplexity(text, self._planner))
        return found[0] if is_one(text) else found

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
        return self._respond(self._planner.plan_requests(task, requests, params))

    def run_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> Generator[Any]:
        """Answer one request in deltas: OpenAI chunks, or strings for ``text-generation``."""
        return self._write(self._planner.plan_request(task, fields, params, stream=True))

    def _respond(self, planned: Sequence[PlannedRequest]) -> list[Any]:
        """Run several requests together."""
        handles = deque(self._texts.submit([job for request in planned for job in request.jobs]))
        responses: list[Any] = []
        try:
            with rows_done(len(planned)) as bar:
                for request in planned:
                    completions = [handles.popleft().result() for _ in request.jobs]
                    responses.append(request.respond(completions))
                    bar.update()
        finally:
            for handle in handles:
                handle.cancel()
        return responses

    def _write(self, planned: PlannedRequest) -> Generator[Any]:
        writer = planned.writer()
        stream = self._texts.stream(planned.jobs)
        try:
            yield from writer.begin()
            for index, delta in stream:
                yield from writer.add(index, delta)
            yield from writer.end()
        finally:
            stream.cancel()
