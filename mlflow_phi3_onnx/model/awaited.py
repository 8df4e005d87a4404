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
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.model.scoring import (
    is_one,
    plan_greedy,
    plan_perplexity,
    plan_token_logprobs,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

    from mlflow_phi3_onnx.model.assembly import CompletionHandle, DeltaStream, TextEngine
    from mlflow_phi3_onnx.model.planning import PlannedRequest, Planner
    from mlflow_phi3_onnx.openai.responses import Writer
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["AsyncMethods"]

_T = TypeVar("_T")


class AsyncMethods:
    """The awaited twins of a model's methods.

    They take what their twins take, and answer and raise the same. A request is checked when its
    call is awaited, or its stream is first asked for a piece. Cancelling the task, or closing the
    stream, stops the generation.
    """

    _planner: Planner
    _texts: TextEngine
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
        """Continue token ids greedily, as ``greedy_tokens``."""
        return (await self._arespond(lambda: [plan_greedy(ids, max_tokens, self._planner)]))[0]

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
        found = await self._arespond(
            lambda: plan_token_logprobs(text, top_logprobs, self._planner, self._tokenizer)
        )
        return found[0] if is_one(text) else found

    @overload
    async def aperplexity(self, text: str | list[int]) -> float: ...

    @overload
    async def aperplexity(self, text: list[str] | list[list[int]]) -> list[float]: ...

    async def aperplexity(
        self, text: str | list[int] | list[str] | list[list[int]]
    ) -> float | list[float]:
        """Measure how surprised the model is by a text, as ``perplexity``."""
        found = await self._arespond(lambda: plan_perplexity(text, self._planner))
        return found[0] if is_one(text) else found

    async def arun(
        self,
        task: Task,
        requests: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Answer several requests together, as ``run``."""
        return await self._arespond(lambda: self._planner.plan_requests(task, requests, params))

    async def arun_stream(
        self, task: Task, fields: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Any]:
        """Answer one request in pieces, as ``run_stream``."""

        def begin() -> tuple[Writer, DeltaStream]:
            planned = self._planner.plan_request(task, fields, params, stream=True)
            return planned.writer(), self._texts.stream(planned.jobs)

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

    async def _arespond(self, plan: Callable[[], Sequence[PlannedRequest]]) -> list[Any]:
        """Plan requests, and run them together."""

        def begin() -> tuple[Sequence[PlannedRequest], Sequence[CompletionHandle]]:
            planned = plan()
            return planned, self._texts.submit([job for one in planned for job in one.jobs])

        planned, taken = await _begin(begin, lambda begun: _cancel(begun[1]))
        handles = deque(taken)
        responses: list[Any] = []
        try:
            with rows_done(len(planned)) as bar:
                for request in planned:
                    completions = [await handles.popleft().aresult() for _ in request.jobs]
                    responses.append(request.respond(completions))
                    bar.update()
        finally:
            _cancel(handles)
        return responses


def _cancel(handles: Iterable[CompletionHandle]) -> None:
    for handle in handles:
        handle.cancel()


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
