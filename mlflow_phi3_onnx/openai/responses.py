"""From results to OpenAI's response objects and stream chunks.

The fields of a response that are always there are those of MLflow's signature; ``logprobs`` and
``tool_calls`` are there only where they were asked for.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.openai.tools import ToolCallParser
from mlflow_phi3_onnx.request import ChatPrompt, TextPrompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_phi3_onnx.openai.parse import Asked
    from mlflow_phi3_onnx.request import Completion, Delta, Result, TokenLogprob

__all__ = ["chat_chunks", "chat_response", "text_chunks", "text_response"]


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Build the usage object; details are there where a part of the prompt was found in a cache."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return counts


def _result_usage(result: Result) -> dict[str, Any]:
    return usage(result.prompt_tokens, result.completion_tokens, result.cached_tokens)


def _stream_usage(prompt_tokens: int, last: Iterable[Delta | None]) -> dict[str, Any]:
    ended = [delta for delta in last if delta is not None]
    cached = min((delta.cached_tokens for delta in ended), default=0)
    return usage(prompt_tokens, sum(delta.tokens for delta in ended), cached)


def chat_response(asked: Asked, result: Result, model: str) -> dict[str, Any]:
    """Build a ``chat.completion`` object."""
    choices = [_chat_choice(i, c, asked) for i, c in enumerate(result.completions)]
    return {
        **_head("chat.completion", "chatcmpl", model),
        "choices": choices,
        "usage": _result_usage(result),
    }


def text_response(asked: Asked, result: Result, model: str) -> dict[str, Any]:
    """Build a ``text_completion`` object."""
    choices = [_text_choice(i, c, asked) for i, c in enumerate(result.completions)]
    return {
        **_head("text_completion", "cmpl", model),
        "choices": choices,
        "usage": _result_usage(result),
    }


def chat_chunks(
    asked: Asked, deltas: Iterable[tuple[int, Delta]], prompt_tokens: int, model: str
) -> Iterator[dict[str, Any]]:
    """Yield ``chat.completion.chunk`` objects: role, content, finish reason, then usage.

    Args:
        asked: The request.
        deltas: Pieces of the answers, each with its answer's index.
        prompt_tokens: How many tokens the prompt has.
        model: The model's name.
    """
    head = _head("chat.completion.chunk", "chatcmpl", model)
    parsers = [_tool_parser(asked) for _ in range(asked.request.options.n)]
    last: list[Delta | None] = [None] * len(parsers)
    for index in range(len(parsers)):
        yield {**head, "choices": [_delta(index, {"role": "assistant", "content": ""})]}
    for index, delta in deltas:
        last[index] = delta
        yield from ({**head, "choices": [c]} for c in _chat_deltas(index, delta, parsers[index]))
    if asked.include_usage:
        yield {**head, "choices": [], "usage": _stream_usage(prompt_tokens, last)}


def text_chunks(
    asked: Asked, deltas: Iterable[tuple[int, Delta]], prompt_tokens: int, model: str
) -> Iterator[dict[str, Any]]:
    """Yield ``text_completion`` chunks: text, finish reason, then usage."""
    head = _head("text_completion", "cmpl", model)
    last: list[Delta | None] = [None] * asked.request.options.n
    if asked.echo:
        for index in range(len(last)):
            choice = {"index": index, "text": _prompt_text(asked), "finish_reason": None}
            yield {**head, "choices": [choice]}
    for index, delta in deltas:
        last[index] = delta
        if not (delta.text or delta.finish_reason or delta.logprobs):
            continue
        choice: dict[str, Any] = {
            "index": index,
            "text": delta.text,
            "finish_reason": delta.finish_reason,
        }
        if delta.logprobs:
            choice["logprobs"] = _text_logprobs(delta.logprobs)
        yield {**head, "choices": [choice]}
    if asked.include_usage:
        yield {**head, "choices": [], "usage": _stream_usage(prompt_tokens, last)}


def _head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _tool_parser(asked: Asked) -> ToolCallParser | None:
    prompt = asked.request.prompt
    if not isinstance(prompt, ChatPrompt) or not prompt.tools:
        return None
    return ToolCallParser({tool["function"]["name"] for tool in prompt.tools})


def _chat_choice(index: int, completion: Completion, asked: Asked) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    reason: str = completion.finish_reason
    if parser := _tool_parser(asked):
        text = parser.add(completion.text)
        rest, calls = parser.finish()
        if calls:
            message["content"] = text or None
            message["tool_calls"] = calls
            reason = "tool_calls" if reason == "stop" else reason
        else:
            message["content"] = text + rest
    choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason}
    if completion.logprobs is not None:
        choice["logprobs"] = _chat_logprobs(completion.logprobs)
    return choice


def _text_choice(index: int, completion: Completion, asked: Asked) -> dict[str, Any]:
    text = _prompt_text(asked) + completion.text if asked.echo else completion.text
    choice: dict[str, Any] = {
        "index": index,
        "text": text,
        "finish_reason": completion.finish_reason,
    }
    if completion.logprobs is not None:
        choice["logprobs"] = _text_logprobs(completion.logprobs)
    return choice


def _prompt_text(asked: Asked) -> str:
    prompt = asked.request.prompt
    assert isinstance(prompt, TextPrompt)
    return prompt.text


def _delta(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason}


def _chat_deltas(
    index: int, delta: Delta, parser: ToolCallParser | None
) -> Iterator[dict[str, Any]]:
    text = parser.add(delta.text) if parser else delta.text
    reason: str | None = delta.finish_reason
    calls: list[dict[str, Any]] = []
    if parser and reason:
        rest, calls = parser.finish()
        text += rest
    if text or delta.logprobs:
        choice = _delta(index, {"content": text})
        if delta.logprobs:
            choice["logprobs"] = _chat_logprobs(delta.logprobs)
        yield choice
    if calls:
        numbered = [{"index": i, **call} for i, call in enumerate(calls)]
        yield _delta(index, {"tool_calls": numbered})
        reason = "tool_calls" if reason == "stop" else reason
    if reason:
        yield _delta(index, {}, reason)


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}


def _chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    return {"content": [{**_entry(t), "top_logprobs": [_entry(o) for o in t.top]} for t in tokens]}


def _text_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    tokens = list(tokens)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{other.text: other.logprob for other in token.top} for token in tokens],
    }
