"""Streams: from the deltas of completions to OpenAI's chunks.

A writer is told of each delta and returns the chunks that it makes, so that the same one serves a
loop in a thread and one in an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mlflow_phi3_onnx.openai.logprobs import (
    OffsetCounter,
    chat_logprobs,
    prompt_logprobs,
    text_logprobs,
)
from mlflow_phi3_onnx.openai.responses import finish_reason, head, tool_parser, usage

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from mlflow_phi3_onnx.core.request import Delta, EncodedPrompt
    from mlflow_phi3_onnx.openai.parse import ParsedRequest
    from mlflow_phi3_onnx.openai.tools.deltas import Part

__all__ = ["ChatWriter", "PlainWriter", "TextWriter", "Writer"]


class Writer(Protocol):
    """Writes one request's answers in pieces."""

    def begin(self) -> Iterator[Any]:
        """Yield what comes before the first piece."""
        ...

    def add(self, index: int, delta: Delta) -> Iterator[Any]:
        """Take a piece of an answer, and yield what it makes.

        Args:
            index: Which answer it belongs to.
            delta: The piece.
        """
        ...

    def end(self) -> Iterator[Any]:
        """Yield what comes after the last piece."""
        ...


class ChatWriter:
    """Writes ``chat.completion.chunk`` objects: role, content or calls, finish reason, usage.

    Args:
        request: The request.
        prompts: Its one prompt.
        model: The model's name.
    """

    def __init__(
        self, request: ParsedRequest, prompts: Sequence[EncodedPrompt], model: str
    ) -> None:
        self._include_usage = request.include_usage
        self._prompts = prompts
        self._head = head("chat.completion.chunk", "chatcmpl", model)
        self._parsers = [tool_parser(request) for _ in range(request.options.n)]
        self._last: dict[int, Delta] = {}

    def begin(self) -> Iterator[dict[str, Any]]:
        """Yield a chunk with the role for each answer."""
        for index in range(len(self._parsers)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def add(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield chunks with content, tool calls or a finish reason, maybe none."""
        self._last[index] = delta
        parser = self._parsers[index]
        pieces: list[Part] = [delta.text] if delta.text else []
        reason: str | None = delta.finish_reason
        if parser:
            pieces = parser.add(delta.text)
            if reason:
                pieces += parser.finish()
                reason = finish_reason(reason, parser)
        more = {"logprobs": chat_logprobs(delta.logprobs)} if delta.logprobs else {}
        for piece in pieces or [""] * bool(more):
            yield self._chunk(index, _delta(piece), **more)
            more = {}
        if reason:
            yield self._chunk(index, {}, finish_reason=reason)

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield a chunk with the usage, unless it is not wanted."""
        if self._include_usage:
            yield _usage_chunk(self._head, self._prompts, self._last)

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": None, **more}
        return {**self._head, "choices": [choice]}


class TextWriter:
    """Writes ``text_completion`` chunks: maybe the prompt, text, finish reason, then usage.

    Args:
        request: The request.
        prompts: Its prompts.
        model: The model's name.
        silent: The ids of tokens that are left out of the answers' text.
    """

    def __init__(
        self,
        request: ParsedRequest,
        prompts: Sequence[EncodedPrompt],
        model: str,
        silent: Container[int],
    ) -> None:
        options = request.options
        self._include_usage = request.include_usage
        self._prompts = prompts
        self._head = head("text_completion", "cmpl", model)
        # Of each answer's prompt, in the order of the answers.
        self._prompt_of = [prompt for prompt in prompts for _ in range(options.n)]
        self._offsets = [OffsetCounter(len(prompt.text), silent) for prompt in self._prompt_of]
        self._reports = options.top_logprobs is not None
        self._echo = request.echo
        self._reported = [0] * len(self._prompt_of)
        self._last: dict[int, Delta] = {}

    def begin(self) -> Iterator[dict[str, Any]]:
        """Yield the prompt before each answer, where it is wanted without log-probabilities."""
        if self._echo and not self._reports:
            for index, prompt in enumerate(self._prompt_of):
                yield self._chunk(index, prompt.text)

    def add(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield chunks with text or a finish reason, maybe none."""
        self._last[index] = delta
        if delta.prompt_logprobs:
            prompt = self._prompt_of[index]
            logprobs = prompt_logprobs(delta.prompt_logprobs, prompt)
            yield self._chunk(index, prompt.text, logprobs=logprobs)
        if delta.text or delta.finish_reason or delta.logprobs:
            more: dict[str, Any] = {}
            self._reported[index] += len(delta.logprobs)
            unreported = delta.tokens > self._reported[index]
            ending = bool(delta.finish_reason) and self._reports and self._echo and unreported
            if delta.logprobs or ending:
                offsets = self._offsets[index]
                more["logprobs"] = text_logprobs(delta.logprobs, offsets, ending=ending)
            yield self._chunk(index, delta.text, finish_reason=delta.finish_reason, **more)

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield a chunk with the usage, unless it is not wanted."""
        if self._include_usage:
            yield _usage_chunk(self._head, self._prompts, self._last)

    def _chunk(self, index: int, text: str, **more: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "finish_reason": None, **more}
        return {**self._head, "choices": [choice]}


class PlainWriter:
    """Writes the text of one answer as it is."""

    def begin(self) -> Iterator[str]:
        """Yield nothing."""
        return iter(())

    def add(self, index: int, delta: Delta) -> Iterator[str]:  # noqa: ARG002 - there is only one
        """Yield the piece's text, if it has any."""
        if delta.text:
            yield delta.text

    def end(self) -> Iterator[str]:
        """Yield nothing."""
        return iter(())


def _delta(piece: Part) -> dict[str, Any]:
    return {"content": piece} if isinstance(piece, str) else {"tool_calls": [piece]}


def _usage_chunk(
    head: dict[str, Any], prompts: Sequence[EncodedPrompt], last: dict[int, Delta]
) -> dict[str, Any]:
    ends = [last[index] for index in range(len(last))]
    return {**head, "choices": [], "usage": usage(prompts, ends)}
