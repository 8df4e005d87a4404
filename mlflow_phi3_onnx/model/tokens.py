"""The model in token ids: texts and conversations encoded, scored, and continued greedily."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.request import ChatPrompt, Options, TextPrompt, TokenPrompt
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.model.planned import PlannedRequest
from mlflow_phi3_onnx.openai.logprobs import entry
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.prompts import FORMS, check_ids, check_messages, check_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.model.planning import Planner
    from mlflow_phi3_onnx.model.running import TextEngine
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["TokenModel", "entries", "perplexity", "same_beginning"]


class TokenModel:
    """A model that reads and writes token ids."""

    def __init__(self, tokenizer: PromptTokenizer, planner: Planner, texts: TextEngine) -> None:
        self._tokenizer = tokenizer
        self._planner = planner
        self._texts = texts

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text as a whole prompt.

        Control tokens in it are control tokens. No beginning-of-sequence token is added.

        Args:
            text: Any text, maybe empty.

        Raises:
            InvalidRequestError: If it is no string, or not valid Unicode.
        """
        (prompt,) = check_text(text, name="text")
        return self._tokenizer.encode(prompt.text, "text").tolist()

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included.

        Bytes that are no whole character are written as U+FFFD.

        Args:
            ids: Token ids, maybe none.

        Raises:
            InvalidRequestError: If one is no token id of the model.
        """
        if isinstance(ids, list | tuple) and not ids:
            return ""
        prompt = TokenPrompt(check_ids(ids, "ids"), "ids")
        return self._tokenizer.decode(self._planner.encode(prompt).tolist())[0]

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[False] = False,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[True],
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
    ) -> str | list[int]:
        """Render a conversation as :meth:`chat` does.

        In the token ids, no text of a message or a tool is a control token. A text cannot keep
        them apart: where messages come from others, pass on the ids.

        Args:
            messages: Objects with ``role`` and ``content``, as in OpenAI's chat API.
            tools: Functions that the model may call, in OpenAI's form.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            tokenize: Whether to return token ids instead of text.

        Raises:
            InvalidRequestError: If a field is not what it may be, or the template refuses it.
        """
        checked = None if tools is None else PARAMETERS[CHAT]["tools"].read(tools)
        chat = ChatPrompt(check_messages(messages), checked or None)
        if tokenize:
            ids = self._tokenizer.encode_chat(chat, add_generation_prompt=add_generation_prompt)
            return ids.tolist()
        return self._tokenizer.render_chat(chat, add_generation_prompt=add_generation_prompt)

    def greedy_tokens(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue a prompt of token ids with the most likely token, again and again.

        The raw logits alone decide: no sampling, penalty or stop sequence of the saved
        configuration or of the model's own defaults counts. That is how models are compared.

        Args:
            ids: The prompt.
            max_tokens: The most tokens to generate.

        Returns:
            The ids of the completion, the one that ended it included.

        Raises:
            InvalidRequestError: If an argument is not what it may be.
            ContextLengthError: If the prompt, or what is asked for, is too long.
        """
        return self._texts.run(self._plan_greedy(ids, max_tokens))[0]

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
        return _as_given(text, self._texts.run(self._plan_token_logprobs(text, top_logprobs)))

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
        return _as_given(text, self._texts.run(self._plan_perplexity(text)))

    async def agreedy_tokens(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue token ids greedily, as ``greedy_tokens``."""
        return (await self._texts.arun(lambda: self._plan_greedy(ids, max_tokens)))[0]

    @overload
    async def atoken_logprobs(
        self, text: str | list[int], top_logprobs: int = 0
    ) -> list[dict[str, Any]]: ...

    @overload
    async def atoken_logprobs(
        self, text: list[str] | list[list[int]], top_logprobs: int = 0
    ) -> list[list[dict[str, Any]]]: ...

    async def atoken_logprobs(
        self, text: str | list[int] | list[str] | list[list[int]], top_logprobs: int = 0
    ) -> list[Any]:
        """Report how likely each token of a text is, as ``token_logprobs``."""
        found = await self._texts.arun(lambda: self._plan_token_logprobs(text, top_logprobs))
        return _as_given(text, found)

    @overload
    async def aperplexity(self, text: str | list[int]) -> float: ...

    @overload
    async def aperplexity(self, text: list[str] | list[list[int]]) -> list[float]: ...

    async def aperplexity(
        self, text: str | list[int] | list[str] | list[list[int]]
    ) -> float | list[float]:
        """Measure how surprised the model is by a text, as ``perplexity``."""
        return _as_given(text, await self._texts.arun(lambda: self._plan_perplexity(text)))

    def _prompts(self, text: Any) -> list[TextPrompt] | list[TokenPrompt]:
        return _check_texts(text, self._planner.context)

    def _plan_greedy(self, ids: Any, max_tokens: Any) -> list[PlannedRequest]:
        limit = PARAMETERS[CHAT]["max_tokens"].read(max_tokens)
        prompt = TokenPrompt(check_ids(ids, "ids", context=self._planner.context), "ids")
        job = self._planner.plan_job(prompt, Options(max_tokens=limit))
        return [PlannedRequest([job], lambda completions: list(completions[0].token_ids))]

    def _plan_token_logprobs(self, text: Any, top_logprobs: Any) -> list[PlannedRequest]:
        top = PARAMETERS[CHAT]["top_logprobs"].read(top_logprobs)
        jobs = [self._planner.plan_job(prompt, _scoring(top)) for prompt in self._prompts(text)]
        return [
            PlannedRequest([job], partial(entries, int(job.prompt[0]), self._tokenizer))
            for job in jobs
        ]

    def _plan_perplexity(self, text: Any) -> list[PlannedRequest]:
        planned: list[PlannedRequest] = []
        for prompt in self._prompts(text):
            job = self._planner.plan_job(prompt, _scoring())
            if len(job.prompt) < 2:
                raise InvalidRequestError(
                    f"{prompt.param} has one token; perplexity is the mean over all tokens but the"
                    " first, so it needs at least two.",
                    param=prompt.param,
                )
            planned.append(PlannedRequest([job], _perplexity))
        return planned


def _as_given(text: Any, found: list[Any]) -> Any:
    """Return what was found of one text, a string or token ids, or of each of several."""
    one = isinstance(text, str) or (text and not isinstance(text[0], str | list | tuple))
    return found[0] if one else found


def _scoring(top_logprobs: int = 0) -> Options:
    return Options(max_tokens=0, top_logprobs=top_logprobs, prompt_logprobs=True)


def _check_texts(value: Any, context: int) -> list[TextPrompt] | list[TokenPrompt]:
    if isinstance(value, str):
        return [TextPrompt(value, "text")]
    if not isinstance(value, list | tuple):
        raise InvalidRequestError(
            f"text must be {FORMS}; got {describe_kind(value)}.", param="text"
        )
    if value and isinstance(value[0], list | tuple):
        named = [(f"text[{place}]", item) for place, item in enumerate(value)]
        return [TokenPrompt(check_ids(item, name, context=context), name) for name, item in named]
    if value and not isinstance(value[0], str):
        return [TokenPrompt(check_ids(value, "text", context=context), "text")]
    for place, item in enumerate(value):
        if not isinstance(item, str):
            where = f"text[{place}]"
            raise InvalidRequestError(
                f"{where} must be a string; got {describe_kind(item)}.", param=where
            )
    return [TextPrompt(item, f"text[{place}]") for place, item in enumerate(value)]


def entries(
    first: int, tokenizer: PromptTokenizer, completions: Sequence[Completion]
) -> list[dict[str, Any]]:
    """Describe the tokens of a prompt that was scored, the first of which has no score."""
    found: list[dict[str, Any]] = []
    for token in completions[0].prompt_logprobs:
        if token is None:
            text, raw = tokenizer.token_text(first)
            head = {"token_id": first, "token": text, "logprob": None, "bytes": list(raw)}
            found.append({**head, "top_logprobs": []})
        else:
            top = [{"token_id": other.token_id, **entry(other)} for other in token.top]
            found.append({"token_id": token.token_id, **entry(token), "top_logprobs": top})
    return found


def _perplexity(completions: Sequence[Completion]) -> float:
    tokens = completions[0].prompt_logprobs
    return perplexity([token.logprob for token in tokens if token is not None])


def perplexity(logprobs: Sequence[float]) -> float:
    """Return the perplexity of tokens with these natural logarithms of their probabilities."""
    return math.exp(-math.fsum(logprobs) / len(logprobs))


def same_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens before the first difference."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
