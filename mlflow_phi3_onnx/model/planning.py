"""From a checked request to the engine's jobs: token ids, and how long each answer may get."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.core.request import (
    ChatPrompt,
    EncodedPrompt,
    Options,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from mlflow_phi3_onnx.engine.base import Job
from mlflow_phi3_onnx.errors import ContextLengthError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.grammar import tool_call_grammar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.openai.parse import Asked
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Plan", "Planner"]


@dataclass(frozen=True)
class Plan:
    """What a request comes to.

    Attributes:
        jobs: The jobs for the first prompt, one an answer, then those for the second, and so on.
        prompts: The prompts, for the response.
    """

    jobs: tuple[Job, ...]
    prompts: tuple[EncodedPrompt, ...]


class Planner:
    """Plans requests for one model.

    Args:
        folder: The model folder.
        tokenizer: Its tokenizer.
        kv_tokens: How many tokens the KV memory holds.
    """

    def __init__(self, folder: ModelFolder, tokenizer: PromptTokenizer, kv_tokens: int) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._kv_tokens = kv_tokens

    def plan(self, asked: Asked) -> Plan:
        """Turn a request into jobs, one an answer.

        Raises:
            InvalidRequestError: If a prompt is empty, or an option does not fit the model, or the
                answer is to match a grammar that is not valid.
            ContextLengthError: If a prompt, or what is asked for, is too long.
        """
        options = self._with_grammar(asked)
        self._check_bias(options)
        reads = asked.echo or options.top_logprobs is not None
        jobs: list[Job] = []
        prompts: list[EncodedPrompt] = []
        for prompt in asked.request.prompts:
            ids = self.encode(prompt)
            limit = self._max_tokens(len(ids), options, _subject(prompt))
            jobs += [Job(ids, limit, options, index) for index in range(options.n)]
            prompts.append(self._encoded(prompt, ids, options, reads=reads))
        return Plan(tuple(jobs), tuple(prompts))

    def plan_scoring(self, prompt: TextPrompt | TokenPrompt, top_logprobs: int) -> Job:
        """Make a job that reports the log-probabilities of a text's tokens, and generates nothing.

        Raises:
            InvalidRequestError: If the text is empty, or has ids that the model has not.
            ContextLengthError: If it is too long.
        """
        options = Options(max_tokens=0, top_logprobs=top_logprobs, prompt_logprobs=True)
        ids = self.encode(prompt)
        return Job(ids, self._max_tokens(len(ids), options, prompt.param), options)

    def plan_greedy(self, prompt: TokenPrompt, max_tokens: int) -> Job:
        """Make a job that always takes the likeliest token, whatever the model's defaults are.

        Raises:
            InvalidRequestError: If the prompt has ids that the model has not.
            ContextLengthError: If the prompt, or what is asked for, is too long.
        """
        options = Options(max_tokens=max_tokens)
        ids = self.encode(prompt)
        return Job(ids, self._max_tokens(len(ids), options, prompt.param), options)

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
            return np.array(prompt.ids, dtype=np.int32)
        if isinstance(prompt, TextPrompt):
            ids = self._tokenizer.encode(prompt.text, prompt.param, context)
        else:
            ids = self._tokenizer.encode_chat(prompt, context=context)
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
        return ids

    def _encoded(
        self, prompt: Prompt, ids: NDArray[np.int32], options: Options, *, reads: bool
    ) -> EncodedPrompt:
        """Tell what a response needs of a prompt."""
        if not reads or isinstance(prompt, ChatPrompt):
            return EncodedPrompt(len(ids))
        if isinstance(prompt, TokenPrompt):
            return EncodedPrompt(len(ids), *self._tokenizer.decode(prompt.ids))
        offsets = self._tokenizer.offsets(prompt.text) if options.prompt_logprobs else ()
        return EncodedPrompt(len(ids), prompt.text, offsets)

    def _with_grammar(self, asked: Asked) -> Options:
        """Settle what the answer must match, and compile it, so that nothing runs if it is bad."""
        options = asked.request.options
        if options.grammar is None and asked.calls is None:
            return options
        eos = frozenset(self._folder.eos_token_ids)
        compiler = self._tokenizer.grammars(self._folder.vocab_size, eos)
        if asked.calls is not None:
            (prompt,) = asked.request.prompts
            assert isinstance(prompt, ChatPrompt)
            assert prompt.tools is not None

            def control_id(text: str) -> int | None:
                token = self._tokenizer.control_id(text)
                return token if token is not None and compiler.is_control(token) else None

            marks = Markings(self._tokenizer.template_shows, control_id)
            grammar = tool_call_grammar(asked.tool_format, prompt.tools, asked.calls, marks)
            if grammar is None:
                return options
            options = replace(options, grammar=grammar)
        assert options.grammar is not None
        compiler.matcher(options.grammar)
        # JSON says the same things again and again, whatever the model's own configuration says.
        sampling = replace(options.sampling, no_repeat_ngram_size=0)
        return replace(options, sampling=sampling)

    def _check_bias(self, options: Options) -> None:
        vocab_size = self._folder.vocab_size
        if any(token >= vocab_size for token in options.sampling.logit_bias):
            raise InvalidRequestError(
                f"logit_bias must have token ids below {vocab_size:,}.", param="logit_bias"
            )

    def _max_tokens(self, prompt: int, options: Options, subject: str) -> int:
        """Settle how many tokens an answer may have, or say why that many do not fit."""
        context = self._folder.context_length
        fewest = 0 if options.max_tokens == 0 else 1
        if prompt + fewest > context:
            raise ContextLengthError(
                f"{subject} has {prompt:,} tokens; the model's maximum context length is"
                f" {context:,} tokens{', the answer included' * fewest}. Shorten it."
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
        if prompt + fewest > limit:
            raise ContextLengthError(
                f"{subject} has {prompt:,} tokens; max_length is {limit:,} tokens, the answer"
                " included. Raise max_length or shorten the prompt.",
                param="max_length",
            )
        if options.max_tokens is None:
            room = min(limit, max(self._kv_tokens, prompt + 1)) - prompt
        else:
            room = min(limit - prompt, options.max_tokens)
            wanted = prompt + options.max_tokens
            if options.strict_limit and wanted > context:
                raise ContextLengthError(
                    f"{subject} has {prompt:,} tokens and max_tokens is {options.max_tokens:,},"
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


def _subject(prompt: Prompt) -> str:
    """Name a prompt at the beginning of a message: one of several by its place."""
    if isinstance(prompt, ChatPrompt) or prompt.param == "prompt":
        return "The prompt"
    return prompt.param
