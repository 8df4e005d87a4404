"""A request's answer as a stream: deltas of its jobs arrive, chunks leave."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.request import Delta
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.model.assembly import joined
from mlflow_phi3_onnx.model.planned import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
    from types import TracebackType

    from mlflow_phi3_onnx.engine.base import JobHandle, TokenDelta
    from mlflow_phi3_onnx.model.assembly import TextAssembler
    from mlflow_phi3_onnx.model.observers import Observed

__all__ = ["ChunkStream"]


class ChunkStream:
    """What a writer makes of several jobs' deltas, to be read in a thread or in an event loop.

    As a context manager, it stops the jobs in the end, and tells how the request ended.
    """

    handles: Sequence[JobHandle]

    def __init__(self, assemblers: Sequence[TextAssembler], observed: Observed) -> None:
        self._assemblers = assemblers
        self._observed = observed
        self._writer = observed.planned.writer()
        self._running = len(assemblers)
        self._arrived: queue.SimpleQueue[tuple[int, TokenDelta | GenAIError]] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None
        # What was written of each completion, where somebody wants to see it as a whole.
        self._written: Sequence[list[Delta]] = [[] for _ in assemblers if observed.thorough]
        self._head: dict[str, Any] = {}

    def deliver(self, position: int, delta: TokenDelta | GenAIError) -> bool:
        """Take a delta of the job at a position, in the engine's thread; more is always wanted."""
        self._arrived.put((position, delta))
        if self._wake is not None:
            self._wake()
        return True

    def __iter__(self) -> Generator[Any]:
        """Yield the chunks, as deltas arrive. Stops the jobs where the loop is left."""
        with self:
            yield from self._shown(self._writer.begin())
            while self._running:
                yield from self._write(*self._arrived.get())
            yield from self._shown(self._writer.end())

    async def __aiter__(self) -> AsyncGenerator[Any]:
        """Yield as :meth:`__iter__`, without blocking the event loop."""
        async with self:
            for chunk in self._shown(self._writer.begin()):
                yield chunk
            while self._running:
                for chunk in self._write(*await self._next()):
                    yield chunk
            for chunk in self._shown(self._writer.end()):
                yield chunk

    def __enter__(self) -> None:
        """Enter."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop the jobs: at most one more step is computed."""
        self._end(error)
        self._observed.tell()

    async def __aenter__(self) -> None:
        """Enter."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop the jobs: at most one more step is computed."""
        self._end(error)
        await self._observed.atell()

    def cancel(self) -> None:
        """Stop the jobs, from outside: at most one more step is computed."""
        self.__exit__(None, GeneratorExit(), None)

    def _end(self, error: BaseException | None) -> None:
        for handle in self.handles:
            handle.cancel()
        failure = error if isinstance(error, Exception) else None
        left = error is not None and failure is None
        self._observed.outcome = partial(self._outcome, failure, left=left)

    def _outcome(self, error: Exception | None, *, left: bool) -> Outcome:
        if not self._observed.thorough:
            counts = [Delta("", assembler.token_count) for assembler in self._assemblers]
            return Outcome(counts, error=error, left=left)
        completions = [
            joined(deltas, assembler.timings)
            for deltas, assembler in zip(self._written, self._assemblers, strict=True)
        ]
        response = self._observed.planned.respond(completions)
        if isinstance(response, dict):
            response = {**response, **self._head}
        return Outcome(completions, response, error, left)

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
        delta = assembler.take()
        if self._written:
            self._written[position].append(delta)
        return self._shown(self._writer.add(position, delta))

    def _shown(self, chunks: Iterable[Any]) -> Iterable[Any]:
        """Show chunks to whoever watches the request, before its caller gets them."""
        return map(self._show, chunks) if self._observed.thorough else chunks

    def _show(self, chunk: Any) -> Any:
        if isinstance(chunk, dict) and not self._head:
            self._head = {name: chunk[name] for name in ("id", "created")}
        self._observed.wrote(chunk)
        return chunk
