"""Planned requests are run: as a whole and as streams, in threads and in event loops.

Where a request has no stop sequences, a whole completion is put together in its caller's thread,
beside the engine's next steps, and so is each delta of a stream. With stop sequences, a whole
completion's text is put together as its tokens are delivered: waking a caller for every token
would cost more than the text does (``python -m benchmarks --only callers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_phi3_onnx.core.progress import rows_done
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.model.assembly import TextAssembler
from mlflow_phi3_onnx.model.planning import PlannedRequest
from mlflow_phi3_onnx.model.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mlflow_phi3_onnx.core.request import Completion
    from mlflow_phi3_onnx.engine.base import Engine, Job, JobHandle, TokenDelta
    from mlflow_phi3_onnx.openai.responses import Writer
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["ChunkStream", "CompletionHandle", "TextEngine", "TimedHandle"]

_T = TypeVar("_T")


class CompletionHandle:
    """A job whose completion is wanted as a whole."""

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

    def __init__(self, assembler: TextAssembler) -> None:
        super().__init__(assembler)
        self.arrivals: list[tuple[float, int]] = []

    def deliver(self, delta: TokenDelta | GenAIError) -> bool:
        """Take a delta, in the engine's thread, which is where no other thread makes it late."""
        if not isinstance(delta, GenAIError) and delta.token_ids:
            before = self.arrivals[-1][1] if self.arrivals else 0
            self.arrivals.append((time.perf_counter(), before + len(delta.token_ids)))
        return super().deliver(delta)


class ChunkStream:
    """What a writer makes of several jobs' deltas, to be read in a thread or in an event loop."""

    handles: Sequence[JobHandle]

    def __init__(self, assemblers: Sequence[TextAssembler], writer: Writer) -> None:
        self._assemblers = assemblers
        self._writer = writer
        self._running = len(assemblers)
        self._arrived: queue.SimpleQueue[tuple[int, TokenDelta | GenAIError]] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None

    def deliver(self, position: int, delta: TokenDelta | GenAIError) -> bool:
        """Take a delta of the job at a position, in the engine's thread; more is always wanted."""
        self._arrived.put((position, delta))
        if self._wake is not None:
            self._wake()
        return True

    def __iter__(self) -> Generator[Any]:
        """Yield the chunks, as deltas arrive. Stops the jobs where the loop is left."""
        with self._watched():
            yield from self._writer.begin()
            while self._running:
                yield from self._write(*self._arrived.get())
            yield from self._writer.end()

    async def __aiter__(self) -> AsyncGenerator[Any]:
        """Yield as :meth:`__iter__`, without blocking the event loop."""
        with self._watched():
            for chunk in self._writer.begin():
                yield chunk
            while self._running:
                for chunk in self._write(*await self._next()):
                    yield chunk
            for chunk in self._writer.end():
                yield chunk

    def cancel(self) -> None:
        """Stop the jobs: at most one more step is computed."""
        _cancel(self.handles)

    @contextlib.contextmanager
    def _watched(self) -> Generator[None]:
        watch = Watch()
        try:
            with watch:
                yield
        finally:
            self.cancel()
            watch.left([assembler.token_count for assembler in self._assemblers])

    async def _next(self) -> tuple[int, TokenDelta | GenAIError]:
        """Wait for the next delta."""
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()
        # An event loop that is closed wants no delta any more.
        self._wake = lambda: loop.is_closed() or loop.call_soon_threadsafe(woken.set)
        while True:
            # Looked for after the wake-up call is set, so that none comes unseen in between.
            with contextlib.suppress(queue.Empty):
                return self._arrived.get_nowait()
            await woken.wait()
            woken.clear()

    def _write(self, position: int, arrived: TokenDelta | GenAIError) -> Iterable[Any]:
        assembler = self._assemblers[position]
        if assembler.finished:
            return ()  # computed before the stop sequence was found
        if isinstance(arrived, GenAIError):
            raise arrived
        assembler.add(arrived)
        if assembler.finished:
            self._running -= 1
            self.handles[position].cancel()
        return self._writer.add(position, assembler.take())


class TextEngine:
    """An engine whose completions are text."""

    def __init__(self, engine: Engine, tokenizer: PromptTokenizer, eos: frozenset[int]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos = eos

    def run(self, planned: Sequence[PlannedRequest]) -> list[Any]:
        """Run requests together, and return their responses."""
        watch = Watch()
        with watch, contextlib.closing(_requests_done(*self._begin(planned))) as requests:
            responses: list[Any] = []
            for request, handles in requests:
                with _Answer(request, handles, watch) as answer:
                    answer.completions = [handle.result() for handle in handles]
                responses.append(answer.response)
            return responses

    async def arun(self, plan: Callable[[], Sequence[PlannedRequest]]) -> list[Any]:
        """Plan requests in a thread and run them, without blocking the event loop."""
        watch = Watch()
        begun = await _in_thread(lambda: self._begin(plan()), lambda begun: _cancel(begun[1]))
        with watch, contextlib.closing(_requests_done(*begun)) as requests:
            responses: list[Any] = []
            for request, handles in requests:
                with _Answer(request, handles, watch) as answer:
                    answer.completions = [await handle.aresult() for handle in handles]
                responses.append(answer.response)
            return responses

    def write(self, planned: PlannedRequest) -> Generator[Any]:
        """Run a request as a stream, from when its first chunk is asked for."""
        yield from self.stream(planned.jobs, planned.writer())

    async def awrite(self, plan: Callable[[], PlannedRequest]) -> AsyncGenerator[Any]:
        """Plan a request in a thread and run it as a stream, without blocking the event loop."""

        def begin() -> ChunkStream:
            planned = plan()
            return self.stream(planned.jobs, planned.writer())

        stream = await _in_thread(begin, ChunkStream.cancel)
        async with contextlib.aclosing(aiter(stream)) as chunks:
            async for chunk in chunks:
                yield chunk

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

    def stream(self, jobs: Sequence[Job], writer: Writer) -> ChunkStream:
        """Take jobs whose completions are wanted delta by delta. Raises as :meth:`submit`."""
        stream = ChunkStream([self._assembler(job) for job in jobs], writer)
        taken = [replace(job, streamed=True) for job in jobs]
        stream.handles = self._engine.submit(taken, stream.deliver)
        return stream

    def run_timed(self, planned: PlannedRequest) -> tuple[Any, list[tuple[float, int]]]:
        """Run a request of one job as a stream; return its response, and when its tokens came."""
        (job,) = planned.jobs
        watch = Watch()
        timed = TimedHandle(self._assembler(job))
        with watch:
            handles = self._engine.submit(
                [replace(job, streamed=True)], lambda _, delta: timed.deliver(delta)
            )
            (timed.handle,) = handles
            try:
                whole = timed.result()
            finally:
                timed.cancel()
        response = watch.done(planned.jobs, [whole], planned.respond([whole]))
        # What came along with the end of a stop sequence is not part of the completion.
        return response, [(then, min(count, whole.tokens)) for then, count in timed.arrivals]

    def _assembler(self, job: Job) -> TextAssembler:
        return TextAssembler(self._tokenizer, self._eos, job.options)

    def _begin(
        self, planned: Sequence[PlannedRequest]
    ) -> tuple[Sequence[PlannedRequest], deque[CompletionHandle]]:
        """Submit requests together; where one is refused and errors are kept, one by one."""
        try:
            return planned, deque(self.submit([job for request in planned for job in request.jobs]))
        except GenAIError:
            if not all(request.keeps_errors for request in planned):
                raise
        begun: list[PlannedRequest] = []
        handles: deque[CompletionHandle] = deque()
        for request in planned:
            try:
                handles.extend(self.submit(request.jobs))
                begun.append(request)
            except GenAIError as error:
                begun.append(PlannedRequest.failed(error))
        return begun, handles


class _Answer:
    """Puts a request's response together, from its completions or, where they are kept, errors."""

    completions: Sequence[Completion]
    response: Any

    def __init__(
        self, request: PlannedRequest, handles: Sequence[CompletionHandle], watch: Watch
    ) -> None:
        self._request = request
        self._handles = handles
        self._watch = watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        jobs = self._request.jobs
        if error is None:
            response = self._request.respond(self.completions)
            self.response = self._watch.done(jobs, self.completions, response)
            return False
        if not isinstance(error, GenAIError) or not self._request.keeps_errors:
            return False
        _cancel(self._handles)
        self._watch.failed(error)
        self.response = error.to_openai()
        return True


def _requests_done(
    planned: Sequence[PlannedRequest], handles: deque[CompletionHandle]
) -> Generator[tuple[PlannedRequest, list[CompletionHandle]]]:
    """Yield each request with its handles, and show how many are done; in the end, stop the rest.

    Handles are taken out of the queue, so that they take no memory once they are done.
    """
    taken: list[CompletionHandle] = []
    try:
        with rows_done(len(planned)) as bar:
            for request in planned:
                taken = [handles.popleft() for _ in request.jobs]
                yield request, taken
                bar.update()
    finally:
        _cancel([*taken, *handles])


def _cancel(handles: Iterable[CompletionHandle | JobHandle]) -> None:
    for handle in handles:
        handle.cancel()


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
            stop(work)
        raise
