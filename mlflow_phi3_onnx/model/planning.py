"""From a request's fields to the engine's jobs, and from completions to what was asked for.

A request is planned before anything runs: it is checked, its prompts are rendered and tokenized,
its grammar is compiled.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.core.request import (
    ChatPrompt,
    EncodedPrompt,
    Options,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, Task
from mlflow_phi3_onnx.engine.base import Job
from mlflow_phi3_onnx.errors import (
    ContextLengthError,
    GenAIError,
    InvalidModelError,
    InvalidRequestError,
)
from mlflow_phi3_onnx.model.observers import tell_refusal
from mlflow_phi3_onnx.model.planned import Asked, PlannedRequest
from mlflow_phi3_onnx.model.reading import Reading, reasoning_format_of, tool_format_of
from mlflow_phi3_onnx.model.settings import ON_ERROR
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.openai.responses import ChatWriter, PlainWriter, TextWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.core.request import Grammar
    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler
    from mlflow_phi3_onnx.model.settings import OnError, Settings
    from mlflow_phi3_onnx.openai.parse import ParsedRequest
    from mlflow_phi3_onnx.openai.reasoning.base import Start
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Planner"]


class Planner:
    """Plans requests for one model.

    Args:
        folder: The model.
        tokenizer: Its tokenizer.
        kv_tokens: How many tokens its KV memory holds.
        settings: Its checked settings.
        adapters: The names of its adapters.
        model_id: Its id in MLflow, for observers.
    """

    def __init__(
        self,
        folder: ModelFolder,
        tokenizer: PromptTokenizer,
        kv_tokens: int,
        settings: Settings,
        adapters: Collection[str],
        model_id: str | None = None,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._kv_tokens = kv_tokens
        self._config = settings.generation
        self._adapters = adapters
        self._model_id = model_id
        self._reading = Reading(
            tokenizer,
            tool_format_of(tokenizer, settings.tool_format),
            reasoning_format_of(tokenizer, settings.reasoning_format),
        )

    @property
    def context(self) -> int:
        """The most tokens of a sequence."""
        return self._folder.context_length

    def plan_requests(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
        on_error: OnError = "raise",
    ) -> list[PlannedRequest]:
        """Plan several requests whose completions are wanted as a whole.

        Raises:
            InvalidRequestError: If one is not what it may be, and is not kept in its place; with
                several requests, the message says which.
        """
        keeps = ON_ERROR.read(on_error) == "row"
        planned: list[PlannedRequest] = []
        for number, fields in enumerate(requests):
            try:
                request = self.plan_request(task, fields, params)
                planned.append(replace(request, keeps_errors=keeps))
            except GenAIError as error:
                if keeps:
                    planned.append(PlannedRequest.failed(error))
                    continue
                if len(requests) == 1:
                    raise
                message = f"row {number}: {error.message}"
                raise type(error)(message, param=error.param) from error
        return planned

    def plan_request(
        self,
        task: Task,
        fields: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
    ) -> PlannedRequest:
        """Check a request, and turn it into jobs.

        Args:
            task: What is asked for.
            fields: The request: ``messages`` or ``prompt``, and parameters.
            params: Parameters beside the request.
            stream: Whether its completions are wanted as they are written.

        Raises:
            InvalidRequestError: If a field is not what it may be, or does not fit the model.
            UnsupportedParameterError: If a parameter is unknown or not supported.
            ContextLengthError: If a prompt, or what is asked for, is too long.
        """
        asked = self._asked(task, fields, params, stream)
        try:
            return replace(self._plan(asked), asked=asked)
        except GenAIError as error:
            tell_refusal(asked, error)
            raise

    def check(self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Check a request as :meth:`plan_request` does, which nobody asks: no observer is told."""
        self._plan(self._asked(task, fields, params, False))

    def _asked(self, task: Task, fields: Any, params: Any, stream: bool) -> Asked:
        name, came = self._folder.model_type, time.monotonic()
        return Asked(task, fields, params, stream, name, self._model_id, came)

    def parse(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> ParsedRequest:
        """Check a request's fields. Raises as :meth:`plan_request`."""
        return parse_request(
            fields,
            task,
            params=params,
            config=self._config,
            model_defaults=self._folder.search,
            adapters=self._adapters,
            own_name=self._folder.model_type,
            context=self._folder.context_length,
        )

    def _plan(self, asked: Asked) -> PlannedRequest:
        task, stream, name = asked.task, asked.stream, asked.model
        request = self.parse(task, asked.fields, asked.params)
        if request.stream is not None and request.stream != stream:
            raise InvalidRequestError(
                "stream is false, but this method streams. Use predict, or leave stream out."
                if stream
                else "stream is true, but this method does not stream. Use predict_stream or one of"
                " the stream_ methods, or leave stream out.",
                param="stream",
            )
        options = request.options
        self._check_ids(options)
        if task == CHAT:
            return self._plan_chat(request, options.adapter or name)
        options = self._with_grammar(options, self._held(request), "closed")
        reads = request.echo or options.top_logprobs is not None
        jobs: list[Job] = []
        prompts: list[EncodedPrompt] = []
        begun = time.monotonic()
        for prompt in request.prompts:
            job = self.plan_job(prompt, options)
            jobs += _each(job)
            prompts.append(self._encoded(prompt, len(job.prompt), options, reads=reads))
        encoding = (begun, time.monotonic())
        name = options.adapter or name
        writer: Callable[[], Writer] = PlainWriter
        if task == COMPLETIONS:
            writer = partial(TextWriter, request, prompts, name, self._tokenizer.control_ids)
        return _planned(jobs, writer, encoding)

    def _plan_chat(self, request: ParsedRequest, name: str) -> PlannedRequest:
        (prompt,) = request.prompts
        assert isinstance(prompt, ChatPrompt)
        held = self._held(request)
        begun = time.monotonic()
        ids = self.encode(prompt)
        encoding = (begun, time.monotonic())
        start = self._reading.start(prompt, ids)
        options = self._with_grammar(request.options, held, start)
        # What a request's own grammar asks for is written as it is.
        own_text = not prompt.continued and request.options.grammar is None
        options = replace(options, kept_tokens=self._reading.kept, own_text=own_text)
        job = self._job(prompt, ids, options)
        read = partial(self._reading.reader, prompt, start)
        writer = partial(ChatWriter, request, [EncodedPrompt(len(ids))], name, read)
        return _planned(_each(job), writer, encoding)

    def plan_job(self, prompt: Prompt, options: Options) -> Job:
        """Make the job of a prompt's first completion.

        Raises:
            InvalidRequestError: If the prompt is empty, or has ids that the model has not.
            ContextLengthError: If the prompt, or what is asked for, is too long.
        """
        return self._job(prompt, self.encode(prompt), options)

    def _job(self, prompt: Prompt, ids: NDArray[np.int32], options: Options) -> Job:
        limit = self._max_tokens(len(ids), options, _subject(prompt))
        predicted = self._tokenizer.encode(options.prediction or "")
        return Job(ids, limit, options, draft_source=tuple(predicted.tolist()))

    def encode(self, prompt: Prompt) -> NDArray[np.int32]:
        """Turn a prompt into token ids, at least one, all of the model's vocabulary.

        Raises:
            InvalidRequestError: If it is empty, or has other ids.
            ContextLengthError: If it is certainly too long, which is known before it is encoded.
        """
        vocab_size, context = self._folder.vocab_size, self._folder.context_length
        if isinstance(prompt, TokenPrompt):
            for place, token in enumerate(prompt.ids):
                if token >= vocab_size:
                    where = f"{prompt.param}[{place}]"
                    raise InvalidRequestError(
                        f"{where} must be a token id below {vocab_size:,}; got {token:,}.",
                        param=where,
                    )
            return self._without_placeholders(prompt, np.array(prompt.ids, dtype=np.int32))
        if isinstance(prompt, TextPrompt):
            ids = self._tokenizer.encode(prompt.text, prompt.param, context)
        else:
            ids = self._tokenizer.encode_chat(
                prompt, add_generation_prompt=prompt.opened, context=context
            )
        if len(ids) == 0:
            raise InvalidRequestError(
                f"{_subject(prompt)} is empty; it needs at least one token.",
                param=prompt.param if isinstance(prompt, TextPrompt) else None,
            )
        if int(ids.max()) >= vocab_size:
            raise InvalidModelError(
                f"The tokenizer gives ids beyond the model's vocabulary of {vocab_size:,}: they do"
                " not belong together."
            )
        return self._without_placeholders(prompt, ids)

    def _without_placeholders(self, prompt: Prompt, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        if held := self._folder.placeholders.intersection(ids.tolist()):
            raise InvalidRequestError(
                f"{_subject(prompt)} holds the token id {min(held):,}, which stands for an image, a"
                " sound or a video. Only text is taken: leave it out.",
                param=None if isinstance(prompt, ChatPrompt) else prompt.param,
            )
        return ids

    def _encoded(
        self, prompt: Prompt, tokens: int, options: Options, *, reads: bool
    ) -> EncodedPrompt:
        """Tell what a response needs of a prompt."""
        if not reads or isinstance(prompt, ChatPrompt):
            return EncodedPrompt(tokens)
        if isinstance(prompt, TokenPrompt):
            return EncodedPrompt(tokens, *self._tokenizer.decode(prompt.ids))
        offsets = self._tokenizer.offsets(prompt.text) if options.prompt_logprobs else ()
        return EncodedPrompt(tokens, prompt.text, offsets)

    def _held(self, request: ParsedRequest) -> Mapping[str, Grammar]:
        """Settle what the completion must match, and compile it: nothing runs if it is bad."""
        if request.options.grammar is None and request.calls is None:
            return {}
        compiler = self._compiler
        held = self._reading.held(request, compiler)
        for grammar in held.values():
            compiler.matcher(grammar)
        return held

    def _with_grammar(self, options: Options, held: Mapping[str, Grammar], start: Start) -> Options:
        """Hold a completion to what it must match, from the end of its thoughts on."""
        if not held:
            return options
        compiler = self._compiler
        grammar = self._reading.framed(held, start, compiler)
        compiler.matcher(grammar)
        # JSON says the same things again and again, whatever the model's own configuration says.
        sampling = replace(options.sampling, no_repeat_ngram_size=0)
        return replace(options, grammar=grammar, sampling=sampling)

    @property
    def _compiler(self) -> GrammarCompiler:
        eos = frozenset(self._folder.eos_token_ids)
        return self._tokenizer.grammars(self._folder.vocab_size, eos)

    def _check_ids(self, options: Options) -> None:
        vocab_size = self._folder.vocab_size
        for name, ids in (
            ("logit_bias", options.sampling.logit_bias),
            ("stop_token_ids", options.stop_token_ids),
        ):
            if any(token >= vocab_size for token in ids):
                raise InvalidRequestError(
                    f"{name} must have token ids below {vocab_size:,}.", param=name
                )

    def _max_tokens(self, prompt: int, options: Options, subject: str) -> int:
        """Settle how many tokens a completion may have, or say why that many do not fit."""
        context, asked = self._folder.context_length, options.max_tokens
        fewest = 0 if asked == 0 else 1
        if prompt + fewest > context:
            raise ContextLengthError(
                f"{subject} has {prompt:,} tokens; the model's maximum context length is"
                f" {context:,} tokens{', the completion included' * fewest}. Shorten it."
            )
        limit = options.max_length
        if limit is None:
            limit = self._folder.search.get("max_length", context) if asked is None else context
        elif options.strict_limit and limit > context:
            raise ContextLengthError(
                f"max_length is {limit:,}; the model's maximum context length is {context:,}"
                " tokens.",
                param="max_length",
            )
        limit = min(limit, context)
        if prompt + fewest > limit:
            raise ContextLengthError(
                f"{subject} has {prompt:,} tokens; max_length is {limit:,} tokens, the completion"
                " included. Raise max_length or shorten the prompt.",
                param="max_length",
            )
        if asked is None:
            asked = max(self._kv_tokens - prompt, 1)
        elif options.strict_limit and prompt + asked > context:
            raise ContextLengthError(
                f"{subject} has {prompt:,} tokens and max_tokens is {asked:,}, together"
                f" {prompt + asked:,}; the model's maximum context length is {context:,} tokens."
                " Lower max_tokens or shorten the prompt.",
                param="max_tokens",
            )
        room = min(limit - prompt, asked)
        if options.min_tokens > room:
            raise InvalidRequestError(
                f"min_tokens is {options.min_tokens:,}, but the completion may have at most"
                f" {room:,} tokens.",
                param="min_tokens",
            )
        return room


def _planned(
    jobs: Sequence[Job], writer: Callable[[], Writer], encoding: tuple[float, float]
) -> PlannedRequest:
    return PlannedRequest(
        jobs, lambda completions: writer().respond(completions), writer, encoding=encoding
    )


def _each(job: Job) -> list[Job]:
    """Make the jobs of all completions of a prompt, of that of the first."""
    return [replace(job, index=i) for i in range(job.options.n)]


def _subject(prompt: Prompt) -> str:
    """Name a prompt at the beginning of a message: one of several by its place."""
    if isinstance(prompt, ChatPrompt) or prompt.param == "prompt":
        return "The prompt"
    return prompt.param
