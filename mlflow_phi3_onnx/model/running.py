"""Planned requests are run: as a whole and as streams, in threads and in event loops.

Where a request has no stop sequences, a whole completion is put together in its caller's thread,
beside the engine's next steps, and so is each delta of a stream. With stop sequences, a whole
completion's text is put together as its tokens are delivered: waking a caller for every token
would cost more than the text does (``python -m benchmarks --only callers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.model.assembly import TextAssembler
from mlflow_phi3_onnx.model.observers import Observed
from mlflow_phi3_onnx.model.planned import Outcome, PlannedRequest
from mlflow_phi3_onnx.model.streaming import ChunkStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.engine.base import Engine, Job, JobHandle, TokenDelta
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["CompletionHandle", "TextEngine", "TimedHandle"]

_T = TypeVar("_T")


class CompletionHandle:
    """A job whose completion is wanted as a whole.

    Attributes:
        streamed: Whether it needs every token as it comes, and not only where text ends it.
    """

    streamed: ClassVar[bool] = False
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
        """Wait for the completion."""
        return self._complete(self._future.result())

    async def aresult(self) -> Completion:
        """Wait as :meth:`result`, without blocking the event loop."""
        last = await asyncio.wrap_future(self._future)
        return await asyncio.to_thread(self._complete, last)

    def cancel(self) -> None:
        """Stop the job: at most one more step is computed. Does nothing once it is finished."""
        self.handle.cancel()

    def _complete(self, last: TokenDelta | None) -> Completion:
        if last is not None:
            self._assembler.add(last)
        return self._assembler.take()


class TimedHandle(CompletionHandle):
    """A job whose completion is wanted as a whole, with the times at which its tokens came.

    Attributes:
        arrivals: When tokens came, by the clock of ``time.perf_counter``, and how many tokens the
            completion had from then on.
    """

    streamed = True

    def __init__(self, assembler: TextAssembler) -> None:
        super().__init__(assembler)
        self.arrivals: list[tuple[float, int]] = []

    def deliver(self, delta: TokenDelta | GenAIError) -> bool:
        """Take a delta, in the engine's thread, which is where no other thread makes it late."""
        if not isinstance(delta, GenAIError) and delta.token_ids:
            before = self.arrivals[-1][1] if self.arrivals else 0
            self.arrivals.append((time.perf_counter(), before + len(delta.token_ids)))
        return super().deliver(delta)


class TextEngine:
    """An engine whose completions are text."""

    def __init__(self, engine: Engine, tokenizer: PromptTokenizer, eos: frozenset[int]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos = eos

    def run(self, planned: Sequence[PlannedRequest]) -> list[Any]:
        """Run requests together, and return their responses."""
        with self._begin(planned) as answers:
            for answer in answers:
                with answer:
                    answer.give([handle.result() for handle in answer.handles])
                answer.observed.tell()
            return answers.responses

    async def arun(self, plan: Callable[[], Sequence[PlannedRequest]]) -> list[Any]:
        """Plan requests in a thread and run them, without blocking the event loop."""
        async with await _in_thread(lambda: self._begin(plan()), _Answers.abandon) as answers:
            for answer in answers:
                with answer:
                    answer.give([await handle.aresult() for handle in answer.handles])
                await answer.observed.atell()
            return answers.responses

    def write(self, planned: PlannedRequest) -> Generator[Any]:
        """Run a request as a stream, from when its first chunk is asked for."""
        yield from self.stream(planned)

    async def awrite(self, plan: Callable[[], PlannedRequest]) -> AsyncGenerator[Any]:
        """Plan a request in a thread and run it as a stream, without blocking the event loop."""
        stream = await _in_thread(lambda: self.stream(plan()), ChunkStream.cancel)
        async with contextlib.aclosing(aiter(stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    def submit(
        self, jobs: Sequence[Job], kind: type[CompletionHandle] = CompletionHandle
    ) -> list[CompletionHandle]:
        """Take jobs whose completions are wanted as a whole. Raises as the engine's ``submit``."""
        completions = [kind(self._assembler(job)) for job in jobs]

        def deliver(position: int, delta: TokenDelta | GenAIError) -> bool:
            return completions[position].deliver(delta)

        # With stop sequences, each token may be the last.
        taken = [replace(job, streamed=kind.streamed or bool(job.options.stop)) for job in jobs]
        handles = self._engine.submit(taken, deliver)
        for completion, handle in zip(completions, handles, strict=True):
            completion.handle = handle
        return completions

    def stream(self, planned: PlannedRequest) -> ChunkStream:
        """Run a request whose completions are wanted delta by delta. Raises as :meth:`submit`."""
        observed = Observed(planned)
        stream = ChunkStream([self._assembler(job) for job in planned.jobs], observed)
        taken = [replace(job, streamed=True) for job in planned.jobs]
        try:
            stream.handles = self._engine.submit(taken, stream.deliver)
        except BaseException as error:
            observed.fail(error)
            raise
        return stream

    def run_timed(self, planned: PlannedRequest) -> tuple[Any, list[tuple[float, int]]]:
        """Run a request of one job as a stream; return its response, and when its tokens came."""
        arrivals: list[tuple[float, int]] = []
        with self._begin([planned], TimedHandle) as answers:
            for answer in answers:
                with answer:
                    (timed,) = answer.handles
                    assert isinstance(timed, TimedHandle)
                    whole = timed.result()
                    # What came along with the end of a stop sequence is not part of the completion.
                    arrivals = [(then, min(count, whole.tokens)) for then, count in timed.arrivals]
                    answer.give([whole])
                answer.observed.tell()
            return answers.responses[0], arrivals

    def _assembler(self, job: Job) -> TextAssembler:
        return TextAssembler(self._tokenizer, self._eos, job.options)

    def _begin(
        self, planned: Sequence[PlannedRequest], kind: type[CompletionHandle] = CompletionHandle
    ) -> _Answers:
        """Submit requests together; where one is refused and errors are kept, one by one."""
        observed = [Observed(request) for request in planned]
        try:
            jobs = [job for request in planned for job in request.jobs]
            return _Answers(observed, self.submit(jobs, kind))
        except BaseException as error:
            if not isinstance(error, GenAIError) or not all(one.keeps_errors for one in planned):
                # Which of several is at fault is not known; none of them is computed.
                for place, one in enumerate(observed):
                    one.fail(error if place == 0 else GeneratorExit())
                raise
        begun: list[Observed] = []
        handles: list[CompletionHandle] = []
        for one in observed:
            try:
                handles += self.submit(one.planned.jobs, kind)
                begun.append(one)
            except GenAIError as error:
                one.fail(error)
                begun.append(Observed(PlannedRequest.failed(error)))
        return _Answers(begun, handles)


class _Answers:
    """The responses of several requests that are run together, one after the other.

    As a context manager, it stops in the end what is not answered, and tells that it was left.

    Attributes:
        responses: Those that there are.
    """

    def __init__(self, observed: Sequence[Observed], handles: Sequence[CompletionHandle]) -> None:
        self._observed = observed
        # Taken out one by one, so that they take no memory once they are done.
        self._waiting = deque(handles)
        self._taken: Sequence[CompletionHandle] = ()
        self._ending = contextlib.ExitStack()
        self.responses: list[Any] = []

    def __iter__(self) -> Generator[_Answer]:
        """Yield an answer to be given for each request, and show how many are done."""
        bar = self._ending.enter_context(rows_done(len(self._observed)))
        for one in self._observed:
            self._taken = [self._waiting.popleft() for _ in one.planned.jobs]
            answer = _Answer(one, self._taken)
            yield answer
            self.responses.append(answer.response)
            bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for one in self._observed:
            one.tell()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop()
        for one in self._observed:
            await one.atell()

    def abandon(self) -> None:
        """Stop them all: nobody waits."""
        self.__exit__()

    def _stop(self) -> None:
        self._ending.close()
        for handle in (*self._taken, *self._waiting):
            handle.cancel()


class _Answer:
    """Puts a request's response together, from its completions or, where they are kept, errors."""

    response: Any

    def __init__(self, observed: Observed, handles: Sequence[CompletionHandle]) -> None:
        self.observed = observed
        self.handles = handles

    def __enter__(self) -> None:
        """Enter."""

    def give(self, completions: Sequence[Completion]) -> None:
        """Take the completions."""
        begun = time.monotonic()
        self.response = self.observed.planned.respond(completions)
        reading = (begun, time.monotonic())
        self.observed.outcome = partial(Outcome, completions, self.response, reading=reading)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.observed.outcome = partial(Outcome, error=error)
        if not isinstance(error, GenAIError) or not self.observed.planned.keeps_errors:
            return False
        for handle in self.handles:
            handle.cancel()
        self.response = error.to_openai()
        return True


async def _in_thread(begin: Callable[[], _T], stop: Callable[[_T], object]) -> _T:
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
            await asyncio.to_thread(stop, work)
        raise
