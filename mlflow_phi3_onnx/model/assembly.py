"""From the engine's token ids to text, on the caller's side.

Where a request has no stop sequences, a whole completion is put together in its caller's thread,
beside the engine's next steps, and so is each delta of a stream. With stop sequences, a whole
completion's text is put together as its tokens are delivered: waking a caller for every token
would cost more than the text does (``python -m benchmarks --only callers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from mlflow_phi3_onnx.core.request import Completion, Delta, TokenLogprob
from mlflow_phi3_onnx.engine.base import TokenDelta
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.prompt.stop import StopMatcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from mlflow_phi3_onnx.core.request import FinishReason, Options
    from mlflow_phi3_onnx.engine.base import Job, JobHandle, TokenScore
    from mlflow_phi3_onnx.engine.inprocess import InProcessEngine
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["CompletionHandle", "DeltaStream", "TextAssembler", "TextEngine"]

_Arrival: TypeAlias = "tuple[int, TokenDelta | GenAIError]"


class TextAssembler:
    """Puts one completion's text together.

    Args:
        tokenizer: The model's tokenizer.
        eos: The end-of-sequence ids.
        options: What the text is to be like.

    Attributes:
        finished: Whether the completion is: tokens that follow a stop sequence are dropped.
    """

    def __init__(self, tokenizer: PromptTokenizer, eos: frozenset[int], options: Options) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._detokenizer = tokenizer.detokenizer(keep_control=options.keep_control_tokens)
        self._stop = StopMatcher(options.stop)
        self._ids: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] = []
        self._reason: FinishReason | None = None
        self._last = TokenDelta(())

    @property
    def finished(self) -> bool:
        """Whether no text follows."""
        return self._reason is not None

    def add(self, delta: TokenDelta) -> None:
        """Take what the engine has delivered."""
        self._last = delta
        if delta.prompt_logprobs:
            scores = delta.prompt_logprobs
            self._prompt_logprobs += [score and self._logprob(score) for score in scores]
        stop, text = self._stop, self._text
        for place, token in enumerate(delta.token_ids):
            self._ids.append(token)
            if token in self._eos:
                break
            text.append(stop.add(self._detokenizer.add(token)))
            if delta.logprobs:
                self._logprobs.append(self._logprob(delta.logprobs[place]))
            if stop.stopped:
                break
        if stop.stopped:
            self._reason = "stop"
        elif delta.finish_reason:
            text.append(stop.add(self._detokenizer.flush()))
            self._reason = "stop" if stop.stopped else delta.finish_reason
            text.append(stop.flush())

    def take(self) -> Delta:
        """Return what was put together since it was last taken."""
        last = self._last
        delta = Delta(
            "".join(self._text),
            len(self._ids),
            self._reason,
            tuple(self._logprobs),
            tuple(self._prompt_logprobs),
            last.cached_tokens,
            last.drafted_tokens,
            last.accepted_tokens,
            tuple(self._ids) if self._reason else (),
        )
        self._text.clear()
        self._logprobs.clear()
        self._prompt_logprobs.clear()
        return delta

    def _logprob(self, score: TokenScore) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in score.top)
        return self._entry(score.token_id, score.logprob, top)

    def _entry(
        self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        text, raw = self._tokenizer.token_text(token)
        return TokenLogprob(token, text, raw, logprob, top)


class CompletionHandle:
    """A job whose completion is wanted as a whole.

    Args:
        assembler: Puts its text together.
    """

    handle: JobHandle

    def __init__(self, assembler: TextAssembler) -> None:
        self._assembler = assembler
        # The last delta, which the caller's thread adds; None where a stop sequence came before.
        self._future: Future[TokenDelta | None] = Future()
        self._future.set_running_or_notify_cancel()  # only cancel() stops it

    def deliver(self, delta: TokenDelta | GenAIError) -> bool:
        """Take a delta, in the engine's thread, and say whether more is wanted."""
        if isinstance(delta, GenAIError):
            self._future.set_exception(delta)
        elif delta.finish_reason:
            self._future.set_result(delta)
        else:
            self._assembler.add(delta)
            if self._assembler.finished:
                self._future.set_result(None)
                return False
        return True

    def result(self) -> Completion:
        """Wait for the completion. Stops the job where the waiting is interrupted."""
        try:
            return self._complete(self._future.result())
        finally:
            self.cancel()

    async def aresult(self) -> Completion:
        """Wait as :meth:`result`, without blocking the event loop."""
        try:
            last = await asyncio.wrap_future(self._future)
            return await asyncio.to_thread(self._complete, last)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop the job: at most one more step is computed. Does nothing once it is finished."""
        self.handle.cancel()

    def _complete(self, last: TokenDelta | None) -> Completion:
        if last is not None:
            self._assembler.add(last)
        return self._assembler.take()


class DeltaQueue:
    """A queue of deltas, to be read in a thread or in an event loop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None

    def put(self, position: int, delta: TokenDelta | GenAIError) -> bool:
        """Add a delta of the job at a position; more is always wanted."""
        self._queue.put((position, delta))
        if self._wake is not None:
            self._wake()
        return True

    def get(self) -> _Arrival:
        """Wait for the next delta."""
        return self._queue.get()

    async def aget(self) -> _Arrival:
        """Wait for the next delta, without blocking the event loop."""
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        # An event loop that is closed wants no delta any more.
        self._wake = lambda: loop.is_closed() or loop.call_soon_threadsafe(arrived.set)
        while True:
            # Looked for after the wake-up call is set, so that none comes unseen in between.
            with contextlib.suppress(queue.Empty):
                return self._queue.get_nowait()
            await arrived.wait()
            arrived.clear()


class DeltaStream:
    """Several jobs' deltas, in the order in which they are delivered.

    Args:
        assemblers: Put the jobs' texts together.
    """

    handles: Sequence[JobHandle]

    def __init__(self, assemblers: Sequence[TextAssembler]) -> None:
        self._assemblers = assemblers
        self._running = len(assemblers)
        self.queue = DeltaQueue()

    def __iter__(self) -> Generator[tuple[int, Delta]]:
        """Yield each delta with its job's position. Stops the jobs where the loop is left."""
        try:
            while self._running:
                yield from self._read(*self.queue.get())
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Yield as :meth:`__iter__`, without blocking the event loop."""
        try:
            while self._running:
                for position, delta in self._read(*await self.queue.aget()):
                    yield position, delta
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop the jobs: at most one more step is computed."""
        for handle in self.handles:
            handle.cancel()

    def _read(self, position: int, arrival: TokenDelta | GenAIError) -> list[tuple[int, Delta]]:
        assembler = self._assemblers[position]
        if assembler.finished:
            return []  # computed before the stop sequence was found
        if isinstance(arrival, GenAIError):
            raise arrival
        assembler.add(arrival)
        if assembler.finished:
            self._running -= 1
            self.handles[position].cancel()
        return [(position, assembler.take())]


class TextEngine:
    """An engine whose completions are text.

    Args:
        engine: Runs the jobs.
        tokenizer: The model's tokenizer.
        eos: The end-of-sequence ids.
    """

    def __init__(
        self, engine: InProcessEngine, tokenizer: PromptTokenizer, eos: frozenset[int]
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos = eos

    def submit(self, jobs: Sequence[Job]) -> list[CompletionHandle]:
        """Take jobs whose completions are wanted as a whole. Raises as the engine's ``submit``."""
        completions = [CompletionHandle(self._assembler(job)) for job in jobs]

        def deliver(position: int, delta: TokenDelta | GenAIError) -> bool:
            return completions[position].deliver(delta)

        # With stop sequences, each token may be the last.
        taken = [replace(job, streamed=True) if job.options.stop else job for job in jobs]
        handles = self._engine.submit(taken, deliver)
        for completion, handle in zip(completions, handles, strict=True):
            completion.handle = handle
        return completions

    def stream(self, jobs: Sequence[Job]) -> DeltaStream:
        """Take jobs whose completions are wanted delta by delta. Raises as :meth:`submit`."""
        stream = DeltaStream([self._assembler(job) for job in jobs])
        taken = [replace(job, streamed=True) for job in jobs]
        stream.handles = self._engine.submit(taken, stream.queue.put)
        return stream

    def _assembler(self, job: Job) -> TextAssembler:
        return TextAssembler(self._tokenizer, self._eos, job.options)
