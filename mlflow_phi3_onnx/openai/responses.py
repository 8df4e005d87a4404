"""From results to OpenAI's response objects.

The fields of a response that are always there are those of MLflow's signature; ``logprobs``,
``tool_calls`` and the details of the usage are there only where there is something to tell.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.openai.logprobs import (
    OffsetCounter,
    chat_logprobs,
    prompt_logprobs,
    text_logprobs,
)
from mlflow_phi3_onnx.openai.tools.deltas import whole_message
from mlflow_phi3_onnx.openai.tools.parser import ToolCallParser

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from mlflow_phi3_onnx.core.request import Completion, Delta, EncodedPrompt, Result
    from mlflow_phi3_onnx.openai.parse import Asked

__all__ = ["chat_response", "finish_reason", "head", "text_response", "tool_parser", "usage"]


def usage(prompts: Sequence[EncodedPrompt], ends: Sequence[Completion | Delta]) -> dict[str, Any]:
    """Build the usage object.

    Details are there where a part of a prompt was found in a cache, and where tokens were guessed
    ahead. What was found of a prompt is the least that any of its answers found.

    Args:
        prompts: The request's prompts.
        ends: The answers, or the last piece of each, as many to each prompt, in order.
    """
    prompt_tokens = sum(prompt.tokens for prompt in prompts)
    completion_tokens = sum(end.tokens for end in ends)
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    n = len(ends) // len(prompts)
    cached = [end.cached_tokens for end in ends]
    found = sum(min(cached[at : at + n]) for at in range(0, len(cached), n))
    if found:
        counts["prompt_tokens_details"] = {"cached_tokens": found}
    drafted = sum(end.drafted_tokens for end in ends)
    if drafted:
        accepted = sum(end.accepted_tokens for end in ends)
        counts["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        }
    return counts


def chat_response(asked: Asked, result: Result, model: str) -> dict[str, Any]:
    """Build a ``chat.completion`` object."""
    choices = [_chat_choice(i, c, asked) for i, c in enumerate(result.completions)]
    return {
        **head("chat.completion", "chatcmpl", model),
        "choices": choices,
        "usage": usage(result.prompts, result.completions),
    }


def text_response(
    asked: Asked, result: Result, model: str, silent: Container[int]
) -> dict[str, Any]:
    """Build a ``text_completion`` object.

    Args:
        asked: The request.
        result: Its answers.
        model: The model's name.
        silent: The ids of tokens that are left out of the answers' text.
    """
    n = asked.request.options.n
    choices = [
        _text_choice(i, completion, result.prompts[i // n], asked, silent)
        for i, completion in enumerate(result.completions)
    ]
    return {
        **head("text_completion", "cmpl", model),
        "choices": choices,
        "usage": usage(result.prompts, result.completions),
    }


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Build the fields that a response, or all chunks of a stream, begin with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def tool_parser(asked: Asked) -> ToolCallParser | None:
    """Make what finds tool calls in one completion, where there are tools and a known format."""
    (prompt,) = asked.request.prompts
    if not isinstance(prompt, ChatPrompt) or not prompt.tools or asked.tool_format is None:
        return None
    return ToolCallParser(asked.tool_format, prompt.tools)


def finish_reason(reason: str, parser: ToolCallParser) -> str:
    """Say why an answer ended that may have called tools."""
    return "tool_calls" if reason == "stop" and parser.calls else reason


def _chat_choice(index: int, completion: Completion, asked: Asked) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    reason: str = completion.finish_reason
    if parser := tool_parser(asked):
        pieces = [*parser.add(completion.text), *parser.finish()]
        message["content"], calls = whole_message(pieces)
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = calls
        reason = finish_reason(reason, parser)
    choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason}
    if completion.logprobs is not None:
        choice["logprobs"] = chat_logprobs(completion.logprobs)
    return choice


def _text_choice(
    index: int,
    completion: Completion,
    prompt: EncodedPrompt,
    asked: Asked,
    silent: Container[int],
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": prompt.text + completion.text if asked.echo else completion.text,
        "finish_reason": completion.finish_reason,
    }
    if completion.logprobs is not None:
        offsets = OffsetCounter(len(prompt.text), silent)
        unreported = asked.echo and completion.tokens > len(completion.logprobs)
        choice["logprobs"] = text_logprobs(completion.logprobs, offsets, ending=unreported)
        if completion.prompt_logprobs is not None:
            before = prompt_logprobs(completion.prompt_logprobs, prompt)
            choice["logprobs"] = {
                name: [*values, *choice["logprobs"][name]] for name, values in before.items()
            }
    return choice
