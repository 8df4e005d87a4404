"""From completions to OpenAI's responses: whole objects, or the chunks of a stream.

The fields of a response that are always there are those of MLflow's signature; ``logprobs``,
``tool_calls`` and the details of the usage are there only where there is something to tell.

A writer writes one request's completions, either as a whole or as a stream. A stream begins, adds
the deltas of the completions, and ends; each step returns the chunks that it makes, so that the
same writer serves a loop in a thread and one in an event loop.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from mlflow_phi3_onnx.openai.logprobs import TextLogprobs, chat_logprobs, text_logprobs
from mlflow_phi3_onnx.openai.tools.deltas import Reasoning, reasoning_of, whole_message

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from mlflow_phi3_onnx.core.request import Completion, Delta, EncodedPrompt
    from mlflow_phi3_onnx.openai.parse import ParsedRequest
    from mlflow_phi3_onnx.openai.reasoning.base import Reader
    from mlflow_phi3_onnx.openai.tools.deltas import Part

__all__ = ["ChatWriter", "PlainWriter", "TextWriter", "Writer"]


class PlainWriter:
    """Writes the text of one completion as it is."""

    def respond(self, completions: Sequence[Completion]) -> str:
        """Return the text."""
        return completions[0].text

    def begin(self) -> Iterator[str]:
        """Yield nothing."""
        return iter(())

    def add(self, index: int, delta: Delta) -> Iterator[str]:  # noqa: ARG002 - there is only one
        """Yield the delta's text, if it has any."""
        if delta.text:
            yield delta.text

    def end(self) -> Iterator[str]:
        """Yield nothing."""
        return iter(())


class _ObjectWriter(ABC):
    """What the objects of chat and of completions have in common.

    Args:
        request: The request.
        prompts: Its prompts.
        model: The model's name.

    Attributes:
        id_prefix: What an id begins with.
        whole_kind: What a response says that it is.
        chunk_kind: What a chunk of a stream says that it is.
    """

    id_prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(
        self, request: ParsedRequest, prompts: Sequence[EncodedPrompt], model: str
    ) -> None:
        self._request = request
        self._prompts = prompts
        self._reports = request.options.top_logprobs is not None
        self._last: dict[int, Delta] = {}
        self._head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_kind,
            "created": int(time.time()),
            "model": model,
        }

    def respond(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Build the whole object."""
        return {
            **self._head,
            "object": self.whole_kind,
            "choices": [self._choice(i, completion) for i, completion in enumerate(completions)],
            "usage": self._usage(completions),
        }

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield a chunk with the usage, where it is wanted."""
        if self._request.include_usage:
            ends = [self._last[index] for index in range(len(self._last))]
            yield {**self._head, "choices": [], "usage": self._usage(ends)}

    @abstractmethod
    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """Build the choice of a whole completion."""

    def _usage(self, ends: Sequence[Delta]) -> dict[str, Any]:
        reasoning = sum(self._reasoning_tokens(index, end) for index, end in enumerate(ends))
        return _usage(self._prompts, ends, reasoning)

    def _reasoning_tokens(self, index: int, end: Delta) -> int:  # noqa: ARG002 - text has none
        """Count the tokens of a completion's thoughts, once it is written."""
        return 0

    def _chunk(self, index: int, field: str, value: Any, **more: Any) -> dict[str, Any]:
        choice = {"index": index, field: value, "finish_reason": None, **more}
        usage = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "choices": [choice], **usage}


class ChatWriter(_ObjectWriter):
    """Writes ``chat.completion``; in chunks: role, reasoning, content, calls, reason, usage.

    Args:
        request: The request.
        prompts: Its one prompt.
        model: The model's name.
        read: Makes what reads a completion.
    """

    id_prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self,
        request: ParsedRequest,
        prompts: Sequence[EncodedPrompt],
        model: str,
        read: Callable[[], Reader],
    ) -> None:
        super().__init__(request, prompts, model)
        self._readers = [read() for _ in range(request.options.n)]

    def begin(self) -> Iterator[dict[str, Any]]:
        """Yield a chunk with the role for each completion."""
        for index in range(len(self._readers)):
            yield self._chunk(index, "delta", {"role": "assistant", "content": ""})

    def add(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield chunks with content, tool calls or a finish reason, maybe none."""
        self._last[index] = delta
        parts, reason = self._read(index, delta)
        more = {"logprobs": chat_logprobs(delta.logprobs)} if delta.logprobs else {}
        for part in parts or [""] * bool(more):
            yield self._chunk(index, "delta", _written(part), **more)
            more = {}
        if reason:
            yield self._chunk(index, "delta", {}, finish_reason=reason)

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        parts, reason = self._read(index, completion)
        text, calls = whole_message(parts)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message = {"role": "assistant", "content": text or None, "tool_calls": calls}
        if reasoning := reasoning_of(parts):
            message["reasoning_content"] = reasoning
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason}
        if self._reports:
            choice["logprobs"] = chat_logprobs(completion.logprobs)
        return choice

    def _read(self, index: int, delta: Delta) -> tuple[list[Part], str | None]:
        """Read a delta, and say why the completion ended, if it did."""
        reader, reason = self._readers[index], delta.finish_reason
        parts = reader.add(delta.text)
        if reason:
            parts += reader.finish()
        return parts, "tool_calls" if reason == "stop" and reader.calls else reason

    def _reasoning_tokens(self, index: int, end: Delta) -> int:
        """Count the tokens whose text begins within a thought or its marks."""
        thoughts = self._readers[index].thoughts
        begins = [begin for begin, _ in thoughts]
        last = (bisect_right(begins, start) - 1 for start in end.token_starts)
        return sum(
            at >= 0 and start < thoughts[at][1]
            for start, at in zip(end.token_starts, last, strict=True)
        )


def _written(part: Part) -> dict[str, Any]:
    """Write a part of a completion as a chunk's delta."""
    if isinstance(part, str):
        return {"content": part}
    if isinstance(part, Reasoning):
        return {"reasoning_content": part.text}
    return {"tool_calls": [part]}


class TextWriter(_ObjectWriter):
    """Writes ``text_completion``; in chunks: maybe the prompt, text, finish reason, then usage.

    Args:
        request: The request.
        prompts: Its prompts.
        model: The model's name.
        silent: The ids of tokens that are left out of the completions' text.
    """

    id_prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"

    def __init__(
        self,
        request: ParsedRequest,
        prompts: Sequence[EncodedPrompt],
        model: str,
        silent: Container[int],
    ) -> None:
        super().__init__(request, prompts, model)
        # Of each completion's prompt, in the order of the completions.
        self._prompt_of = [prompt for prompt in prompts for _ in range(request.options.n)]
        self._echo = request.echo
        self._logprobs = [
            TextLogprobs(prompt, silent, ending=self._reports and self._echo)
            for prompt in self._prompt_of
        ]

    def begin(self) -> Iterator[dict[str, Any]]:
        """Yield the prompt before each completion, where it is wanted without log-probabilities."""
        if self._echo and not self._reports:
            for index, prompt in enumerate(self._prompt_of):
                yield self._chunk(index, "text", prompt.text)

    def add(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield chunks with text or a finish reason, maybe none."""
        self._last[index] = delta
        if before := self._logprobs[index].of_prompt(delta):
            text = self._prompt_of[index].text
            yield self._chunk(index, "text", text, logprobs=text_logprobs(before))
        if delta.text or delta.finish_reason or delta.logprobs:
            entries = self._logprobs[index].of_text(delta)
            more = {"logprobs": text_logprobs(entries)} if entries else {}
            reason = delta.finish_reason
            yield self._chunk(index, "text", delta.text, finish_reason=reason, **more)

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        before = self._prompt_of[index].text if self._echo else ""
        choice: dict[str, Any] = {
            "index": index,
            "text": before + completion.text,
            "finish_reason": completion.finish_reason,
        }
        if self._reports:
            logprobs = self._logprobs[index]
            entries = [*logprobs.of_prompt(completion), *logprobs.of_text(completion)]
            choice["logprobs"] = text_logprobs(entries)
        return choice


Writer: TypeAlias = ChatWriter | TextWriter | PlainWriter


def _usage(
    prompts: Sequence[EncodedPrompt], ends: Sequence[Delta], reasoning: int
) -> dict[str, Any]:
    """Build the usage object.

    Details are there where a part of a prompt was found in a cache, where draft tokens were
    verified, and where there was reasoning. What was found of a prompt is the least that any of its
    completions found.

    Args:
        prompts: The request's prompts.
        ends: The completions, or the last delta of each, as many to each prompt, in order.
        reasoning: How many of their tokens are reasoning.
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
    details = {"reasoning_tokens": reasoning} if reasoning else {}
    drafted = sum(end.drafted_tokens for end in ends)
    if drafted:
        accepted = sum(end.accepted_tokens for end in ends)
        details["accepted_prediction_tokens"] = accepted
        details["rejected_prediction_tokens"] = drafted - accepted
    if details:
        counts["completion_tokens_details"] = details
    return counts
