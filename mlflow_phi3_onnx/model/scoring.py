"""What is asked in token ids: how likely a model finds given ones, and which it would write."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.request import TextPrompt, TokenPrompt
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.model.planning import PlannedRequest
from mlflow_phi3_onnx.openai.logprobs import entry
from mlflow_phi3_onnx.openai.parameters import CHAT, PARAMETERS
from mlflow_phi3_onnx.openai.prompts import FORMS, check_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.model.planning import Planner
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["is_one", "perplexity", "plan_greedy", "plan_perplexity", "plan_token_logprobs"]


def is_one(text: Any) -> bool:
    """Whether a text is one, as a string or as token ids, and not several."""
    if isinstance(text, str):
        return True
    return bool(text) and not isinstance(text[0], str | list | tuple)


def plan_greedy(ids: Any, max_tokens: Any, planner: Planner) -> PlannedRequest:
    """Plan the greedy continuation of a prompt of token ids.

    Raises:
        InvalidRequestError: If an argument is not what it may be.
        ContextLengthError: If the prompt, or what is asked for, is too long.
    """
    limit = PARAMETERS[CHAT]["max_tokens"].read(max_tokens)
    job = planner.plan_greedy(TokenPrompt(check_ids(ids, "ids"), "ids"), limit)
    return PlannedRequest([job], lambda completions: list(completions[0].token_ids))


def plan_token_logprobs(
    text: Any, top_logprobs: Any, planner: Planner, tokenizer: PromptTokenizer
) -> list[PlannedRequest]:
    """Plan the report of each token of one text or several.

    Raises:
        InvalidRequestError: If an argument is not what it may be.
        ContextLengthError: If a text is too long.
    """
    top = PARAMETERS[CHAT]["top_logprobs"].read(top_logprobs)
    scores: list[PlannedRequest] = []
    for prompt in _check_texts(text):
        job = planner.plan_scoring(prompt, top)
        scores.append(PlannedRequest([job], partial(_entries, int(job.prompt[0]), tokenizer)))
    return scores


def plan_perplexity(text: Any, planner: Planner) -> list[PlannedRequest]:
    """Plan the perplexity of one text or several.

    Raises:
        InvalidRequestError: If a text is not one of at least two tokens.
        ContextLengthError: If a text is too long.
    """
    scores: list[PlannedRequest] = []
    for prompt in _check_texts(text):
        job = planner.plan_scoring(prompt, 0)
        if len(job.prompt) < 2:
            raise InvalidRequestError(
                f"{prompt.param} has one token; perplexity is the mean over all tokens but the"
                " first, so it needs at least two.",
                param=prompt.param,
            )
        scores.append(PlannedRequest([job], _perplexity))
    return scores


def _check_texts(value: Any) -> list[TextPrompt] | list[TokenPrompt]:
    if isinstance(value, str):
        return [TextPrompt(value, "text")]
    if not isinstance(value, list | tuple):
        raise InvalidRequestError(
            f"text must be {FORMS}; got {describe_kind(value)}.", param="text"
        )
    if value and isinstance(value[0], list | tuple):
        named = [(f"text[{place}]", item) for place, item in enumerate(value)]
        return [TokenPrompt(check_ids(item, name), name) for name, item in named]
    if value and not isinstance(value[0], str):
        return [TokenPrompt(check_ids(value, "text"), "text")]
    for place, item in enumerate(value):
        if not isinstance(item, str):
            where = f"text[{place}]"
            raise InvalidRequestError(
                f"{where} must be a string; got {describe_kind(item)}.", param=where
            )
    return [TextPrompt(item, f"text[{place}]") for place, item in enumerate(value)]


def _entries(
    first: int, tokenizer: PromptTokenizer, completions: Sequence[Completion]
) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for token in completions[0].prompt_logprobs:
        if token is None:
            text, raw = tokenizer.token_text(first)
            head = {"token_id": first, "token": text, "logprob": None, "bytes": list(raw)}
            entries.append({**head, "top_logprobs": []})
        else:
            top = [{"token_id": other.token_id, **entry(other)} for other in token.top]
            entries.append({"token_id": token.token_id, **entry(token), "top_logprobs": top})
    return entries


def _perplexity(completions: Sequence[Completion]) -> float:
    tokens = completions[0].prompt_logprobs
    return perplexity([token.logprob for token in tokens if token is not None])


def perplexity(logprobs: Sequence[float]) -> float:
    """Return the perplexity of tokens with these natural logarithms of their probabilities."""
    return math.exp(-math.fsum(logprobs) / len(logprobs))
