"""From a checked request to the engine's jobs: token ids, and how long the answer may get."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.engine.base import Job
from mlflow_phi3_onnx.errors import ContextLengthError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.openai.tool_grammar import call_grammar
from mlflow_phi3_onnx.request import ChatPrompt, Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.openai.parse import Asked
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["Planner"]


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

    def jobs(self, asked: Asked) -> list[Job]:
        """Turn a request into jobs, one an answer.

        Raises:
            InvalidRequestError: If the prompt is empty, or an option does not fit the model, or
                the answer is to match a grammar that is not valid.
            ContextLengthError: If the prompt, or what is asked for, is too long.
        """
        prompt = asked.request.prompt
        options = self._with_grammar(asked)
        if isinstance(prompt, ChatPrompt):
            ids = self._tokenizer.encode_chat(prompt)
        else:
            ids = self._tokenizer.encode(prompt.text)
        self._check_ids(ids, options)
        limit = self._max_tokens(len(ids), options)
        return [Job(ids, limit, options, index) for index in range(options.n)]

    def _with_grammar(self, asked: Asked) -> Options:
        """Settle what the answer must match, and compile it, so that nothing runs if it is bad."""
        options = asked.request.options
        prompt = asked.request.prompt
        if options.grammar is None and asked.calls is None:
            return options
        eos = frozenset(self._folder.eos_token_ids)
        compiler = self._tokenizer.grammars(self._folder.vocab_size, eos)
        if asked.calls is not None:
            assert isinstance(prompt, ChatPrompt)
            assert prompt.tools is not None

            def control_id(text: str) -> int | None:
                token = self._tokenizer.control_id(text)
                return token if token is not None and compiler.is_control(token) else None

            grammar = call_grammar(
                prompt.tools, asked.calls, control_id, self._tokenizer.template_shows
            )
            options = replace(options, grammar=grammar)
        assert options.grammar is not None
        compiler.matcher(options.grammar)
        # JSON says the same things again and again, whatever the model's own configuration says.
        sampling = replace(options.sampling, no_repeat_ngram_size=0)
        return replace(options, sampling=sampling)

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
            room = min(limit, max(self._kv_tokens, prompt + 1)) - prompt
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
