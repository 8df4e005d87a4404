"""The model's calls for event loops: the same plans and answers as in a thread, awaited.

Whatever takes long runs elsewhere: parsing, templates, tokenization and grammars in a worker
thread, the model in its engine.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, overload

from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.model.scoring import (
    is_one,
    plan_greedy,
    plan_perplexity,
    plan_token_logprobs,
)
from mlflow_phi3_onnx.openai.parameters import CHAT, COMPLETIONS, TEXT, Task

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

    from mlflow_phi3_onnx.engine.base import Engine, Stream, Ticket
    from mlflow_phi3_onnx.model.calls import Calls, Question
    from mlflow_phi3_onnx.model.planning import Planner
    from mlflow_phi3_onnx.openai.stream import Writer
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["AsyncMethods"]

_T = TypeVar("_T")


class AsyncMethods:
    """The awaited twins of a model's methods.

    They take what their twins take, and answer and raise the same. A request is checked when its
    call is awaited, or its stream is first asked for a piece. Cancelling the task, or closing the
    stream, stops the generation.
    """

    _calls: Calls
    _engine: Engine
    _planner: Planner
    _tokenizer: PromptTokenizer

    async def achat(self, messages: Sequence[Mapping[str, Any]], **params: Any) -> dict[str, Any]:
        """Answer a conversation, as ``chat``."""
        return (await self.arun(CHAT, [{"messages": messages, **params}]))[0]

    def astream_chat(
        self, messages: Sequence[Mapping[str, Any]], **params: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Answer a conversation in chunks, as ``stream_chat``."""
        return self.arun_stream(CHAT, {"messages": messages, **params})

    async def acomplete(
        self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], **params: Any
    ) -> dict[str, Any]:
        """Continue one prompt or several, as ``complete``."""
        return (await self.arun(COMPLETIONS, [{"prompt": prompt, **params}]))[0]

    def astream_complete(
        self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], **params: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Continue one prompt or several in chunks, as ``stream_complete``."""
        return self.arun_stream(COMPLETIONS, {"prompt": prompt, **params})

    @overload
    async def agenerate(self, prompt: str, **params: Any) -> str: ...

    @overload
    async def agenerate(self, prompt: list[str], **params: Any) -> list[str]: ...

    async def agenerate(self, prompt: str | list[str], **params: Any) -> str | list[str]:
        """Continue one prompt or many, text in and text out, as ``generate``."""
        if isinstance(prompt, str):
            return (await self.arun(TEXT, [{"prompt": prompt, **params}]))[0]
        return await self.arun(TEXT, [{"prompt": text, **params} for text in prompt])

    def astream_generate(self, prompt: str, **params: Any) -> AsyncGenerator[str]:
        """Continue a prompt in pieces of text, as ``stream_generate``."""
        return self.arun_stream(TEXT, {"prompt": prompt, **params})

    async def agreedy_tokens(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Continue token ids with the likeliest ones, as ``greedy_tokens``."""
        return (await self._aanswers(lambda: [plan_greedy(ids, max_tokens, self._planner)]))[0]

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
        answers = await self._aanswers(
            lambda: plan_token_logprobs(text, top_logprobs, self._planner, self._tokenizer)
        )
        return answers[0] if is_one(text) else answers

    @overload
    async def aperplexity(self, text: str | list[int]) -> float: ...

    @overload
    async def aperplexity(self, text: list[str] | list[list[int]]) -> list[float]: ...

    async def aperplexity(
        self, text: str | list[int] | list[str] | list[list[int]]
    ) -> float | list[float]:
        """Measure how surprised the model is by a text, as ``perplexity``."""
        answers = await self._aanswers(lambda: plan_perplexity(text, self._planner))
        return answers[0] if is_one(text) else answers

    async def arun(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Answer several requests together, as ``run``."""
        return await self._aanswers(lambda: self._calls.plan_each(task, requests, params))

    async def arun_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Any]:
        """Answer one request in pieces, as ``run_stream``."""

        def begin() -> tuple[Writer, Stream]:
            call = self._calls.plan_stream(task, fields, params)
            return call.writer(), self._engine.stream(call.jobs)

        writer, stream = await _begin(begin, lambda begun: begun[1].cancel())
        try:
            for piece in writer.begin():
                yield piece
            async with aclosing(aiter(stream)) as deltas:
                async for index, delta in deltas:
                    for piece in writer.add(index, delta):
                        yield piece
            for piece in writer.end():
                yield piece
        finally:
            stream.cancel()

    async def _aanswers(self, plan: Callable[[], Sequence[Question]]) -> list[Any]:
        """Plan questions, and let the engine answer them together."""

        def begin() -> tuple[Sequence[Question], Sequence[Ticket]]:
            questions = plan()
            jobs = [job for question in questions for job in question.jobs]
            return questions, self._engine.submit(jobs)

        questions, taken = await _begin(begin, lambda begun: _cancel(begun[1]))
        tickets = deque(taken)
        answers: list[Any] = []
        try:
            with rows_done(len(questions)) as bar:
                for question in questions:
                    done = [await tickets.popleft().aresult() for _ in question.jobs]
                    answers.append(question.answer(done))
                    bar.update()
        finally:
            _cancel(tickets)
        return answers


def _cancel(tickets: Iterable[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancel()


async def _begin(begin: Callable[[], _T], stop: Callable[[_T], object]) -> _T:
    """Begin work in a thread. If the task is cancelled meanwhile, stop it once it has begun.

    Args:
        begin: Begins the work and returns it.
        stop: Stops it; may be called twice.
    """
    begun: list[_T] = []
    unwanted = threading.Event()

    def run() -> _T:
        begun.append(begin())
        if unwanted.is_set():
            stop(begun[0])
        return begun[0]

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        unwanted.set()
        for work in begun:
            stop(work)
        raise
