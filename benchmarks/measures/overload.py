"""A server under four times the load that it can bear: what it refuses, and how soon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.results import Row, Side
from benchmarks.serving import HTTP, running
from benchmarks.subject import Scale, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

__all__ = ["Answer", "capacity", "flood", "overload"]

LOAD = 4
"""How many times its capacity a server is asked."""

ROWS = 8
ANSWER_TOKENS = 16
SECONDS = 60.0
CLIENTS = 32
QUEUE = 32
"""Shorter than a server's own, so that a short run fills it too."""
TICK = 0.002
LONGEST = 300.0
"""Seconds that the last answers are waited for."""


class Answer(NamedTuple):
    """What came of a request.

    Attributes:
        sent: When it was sent, in seconds since the first was.
        status: The HTTP status; 0 where the connection broke.
        seconds: From the connection to the last byte of the answer.
        head: The response's headers.
        body: Its body.
    """

    sent: float
    status: int
    seconds: float
    head: bytes
    body: bytes


def overload(scale: Scale) -> Iterator[Row]:
    """Ask a server four times as often as it can answer, and see how soon it refuses the rest."""
    subject = Subject("demo")
    command = [sys.executable, "-m", "mlflow_phi3_onnx.cli", "serve", str(subject.folder)]
    command += ["--port", "{port}", "--log-level", "warning", "--max-queue", str(QUEUE)]
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": "What is the capital of Spain?"}],
        "n": ROWS,
        **subject.length(ANSWER_TOKENS),
    }
    with (
        tempfile.TemporaryDirectory() as name,
        running(command, "/ping", Path(name)) as (url, _),
    ):
        port = int(url.rpartition(":")[2])
        pings = [_ping(url) for _ in range(scale.pick(200, 10))]
        most = capacity(port, fields, CLIENTS, scale.pick(10.0, 2.0))
        # What two seconds say of the capacity is too little on a machine that is busy.
        rate = scale.pick(LOAD, 4 * LOAD) * most
        answers = asyncio.run(flood(port, fields, rate, scale.pick(SECONDS, 5.0)))
    refused = [1e3 * one.seconds for one in answers if one.status == 429]
    good = [one.seconds for one in answers if one.status == 200]
    yield Row(
        "refusal",
        f"{subject.name}, {most:.0f} requests/s answered, {rate:.0f} asked",
        Side("p99 of a refusal", "ms", [_percentile(refused, 99)]),
        Side("p99 of /ping of an idle server", "ms", [1e3 * _percentile(pings, 99)]),
        [_percentile(refused, 99)],
        {
            "refused": len(refused),
            "refused_p50_ms": _percentile(refused, 50),
            "refused_slowest_ms": max(refused),
            "answered": len(good),
            "answered_p50_seconds": _percentile(good, 50),
            "failed": len(answers) - len(refused) - len(good),
        },
    )


def capacity(port: int, fields: dict[str, Any], clients: int, seconds: float) -> float:
    """Count the requests that are answered in a second, of clients that wait for their answers."""

    async def ask() -> int:
        async with _Sender(port, fields) as sender:

            async def client() -> None:
                while sender.seconds < seconds:
                    await sender.ask()

            await asyncio.gather(*(client() for _ in range(clients)))
        return sum(a.status == 200 and a.sent + a.seconds <= seconds for a in sender.answers)

    return asyncio.run(ask()) / seconds


async def flood(port: int, fields: dict[str, Any], rate: float, seconds: float) -> list[Answer]:
    """Send requests at a steady rate, whatever becomes of those before, and wait for all answers.

    Args:
        port: The server's, on this machine.
        fields: Each request's.
        rate: Requests in a second.
        seconds: How long.
    """
    asked: list[asyncio.Task[None]] = []
    async with _Sender(port, fields) as sender:
        while sender.seconds < seconds:
            while len(asked) < sender.seconds * rate:
                asked.append(asyncio.ensure_future(sender.ask()))
            await asyncio.sleep(TICK)
        await asyncio.wait_for(asyncio.gather(*asked), LONGEST)
    return sender.answers


class _Sender:
    """Sends one request again and again.

    A connection is used again once its answer has come, as clients do that keep a pool.
    """

    def __init__(self, port: int, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._data = head.encode() + body
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._start = time.perf_counter()
        self.answers: list[Answer] = []

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start

    async def ask(self) -> None:
        """Send the request, and keep what comes of it."""
        sent = self.seconds
        status, head, body = 0, b"", b""
        reader, writer = await self._connected()
        try:
            writer.write(self._data)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.split(b"content-length: ")[1].split()[0]))
            status = int(head.split()[1])
            self._idle.append((reader, writer))
        except (OSError, EOFError):
            await _closed(writer)
        self.answers.append(Answer(sent, status, self.seconds - sent, head, body))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server ends those that are idle for long
                return reader, writer
            await _closed(writer)
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            await _closed(connection[1])


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def _ping(url: str) -> float:
    start = time.perf_counter()
    HTTP.open(f"{url}/ping", timeout=LONGEST).close()
    return time.perf_counter() - start
