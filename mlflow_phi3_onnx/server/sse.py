"""Streams of server-sent events, for clients that read, read slowly, or go away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from mlflow_phi3_onnx.openai.responses_api.events import sse
from mlflow_phi3_onnx.server.body import to_json
from mlflow_phi3_onnx.server.errors import ClientGoneError, SlowClientError, as_server_error
from mlflow_phi3_onnx.server.logs import log_failure
from mlflow_phi3_onnx.server.work import stopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.server.record import Record
    from mlflow_phi3_onnx.server.settings import ServerSettings
    from mlflow_phi3_onnx.server.work import Lifetime

__all__ = ["ChatEvents", "EventStream", "ResponseEvents"]

KEEPALIVE = b": keep-alive\n\n"

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ChatEvents:
    """Writes chunks as OpenAI's older APIs do."""

    last = b"data: [DONE]\n\n"

    def write(self, chunk: dict[str, Any]) -> bytes:
        """Write a chunk as an event."""
        return b"data: " + to_json(chunk) + b"\n\n"

    def fail(self, error: GenAIError) -> bytes:
        """Write the event of an error."""
        return self.write(error.to_openai())


class ResponseEvents:
    """Writes events as OpenAI's Responses API does: with names, and nothing after the last."""

    last = b""

    def __init__(self) -> None:
        self._count = 0

    def write(self, chunk: dict[str, Any]) -> bytes:
        """Write an event."""
        self._count += 1
        return sse(chunk).encode()

    def fail(self, error: GenAIError) -> bytes:
        """Write the event of an error; OpenAI's clients raise what is in its ``error``."""
        told = error.to_openai()["error"]
        flat = {name: told[name] for name in ("code", "message", "param")}
        event = {"type": "error", **flat, "sequence_number": self._count, "error": told}
        return self.write(event)


class EventStream(Response):
    """Sends chunks as events.

    What fails before the first chunk is raised, for a response with a status of its own; what fails
    later, or after the time of a first comment, is an event. Chunks wait in a bounded buffer, and a
    client that lets it run full is cut off.

    Args:
        chunks: The chunks.
        lifetime: How long it may go on.
        settings: The server's.
        record: What is told of the request.
        events: How chunks are written.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[dict[str, Any]],
        lifetime: Lifetime,
        settings: ServerSettings,
        record: Record,
        events: ChatEvents | ResponseEvents,
    ) -> None:
        super().__init__()
        self._events = events
        self._chunks = chunks
        self._lifetime = lifetime
        self._settings = settings
        self._record = record
        self._buffer: asyncio.Queue[bytes] = asyncio.Queue(settings.stream_buffer)
        self._ended = False
        self._behind = asyncio.get_running_loop().create_future()
        self._moved = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the lifetime listens
        """Send the stream."""
        interval = self._settings.keepalive_interval
        async with contextlib.aclosing(self._chunks):
            first = asyncio.ensure_future(anext(self._chunks))
            try:
                await self._lifetime.run(asyncio.wait({first}, timeout=interval))
                if first.done():
                    first.result()
                await self._go_on(first, scope, send)
            finally:
                await stopped(first)

    async def _go_on(self, first: asyncio.Future[dict[str, Any]], scope: Scope, send: Send) -> None:
        """Send the stream, whatever comes now."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        producer = asyncio.ensure_future(self._produce(first))
        sender = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(self._lifetime.until_gone())
        clock = asyncio.ensure_future(self._keep_alive())
        call_off = self._lifetime.on_end(lambda: self._give_up(producer))
        try:
            await asyncio.wait({sender, gone, self._behind}, return_when=asyncio.FIRST_COMPLETED)
            if self._behind.done():
                self._record.left(SlowClientError("The client does not read its stream."))
                scope["state"].get("abort", lambda: None)()
            elif sender.done():
                sender.result()
            elif self._record.status != 499:  # else it was cut off
                self._record.left(ClientGoneError("The client has closed the connection."))
        finally:
            call_off()
            await stopped(producer, sender, gone, clock)

    async def _produce(self, first: asyncio.Future[dict[str, Any]]) -> None:
        """Fill the buffer with what comes, and end it with how that ended."""
        try:
            self._put(self._events.write(await first))
            async for chunk in self._chunks:
                await self._room()
                self._put(self._events.write(chunk))
            await self._room()
            self._end(b"")
        except Exception as error:  # noqa: BLE001 - whatever fails is told in an event
            self._fail(error)

    async def _send(self, send: Send) -> None:
        """Send what is in the buffer, as much as there is at once."""
        while True:
            parts = [await self._buffer.get()]
            while not self._buffer.empty():
                parts.append(self._buffer.get_nowait())
            over = self._ended
            body = b"".join(parts)
            await send({"type": "http.response.body", "body": body, "more_body": not over})
            self._moved = time.monotonic()
            if over:
                return

    async def _keep_alive(self) -> None:
        """Keep the connection of a client that waits alive."""
        interval = self._settings.keepalive_interval
        while True:
            if time.monotonic() - self._moved >= interval and self._buffer.empty():
                self._put(KEEPALIVE)
            await asyncio.sleep(interval / 4)

    async def _room(self) -> None:
        """Let what comes at once go on, where the sender is not held up."""
        if self._buffer.full():
            await asyncio.sleep(0)

    def _put(self, event: bytes) -> None:
        try:
            self._buffer.put_nowait(event)
        except asyncio.QueueFull:
            if not self._behind.done():
                self._behind.set_result(None)

    def _end(self, last: bytes) -> None:
        self._ended = True
        self._put(last + self._events.last)

    def _give_up(self, producer: asyncio.Future[None]) -> None:
        """End the stream with why it is given up."""
        if not self._ended:
            producer.cancel()
            self._fail(self._lifetime.reason())

    def _fail(self, error: Exception) -> None:
        """End the stream with an error."""
        failure = as_server_error(error)
        if failure is not error:
            log_failure(self._record, error)
        self._record.failed(failure)
        self._end(self._events.fail(failure))
