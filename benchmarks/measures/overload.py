"""A server under four times the load that it can bear: what it refuses, and how soon."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.results import Row, Side
from benchmarks.serving import HTTP, running
from benchmarks.subject import Scale, Subject
from benchmarks.timing import percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Answer", "capacity", "flood", "overload"]

LOAD = 4
"""How many times its capacity a server is asked."""

ROWS = 8
ANSWER_TOKENS = 16
SECONDS = 60.0
CLIENTS = 32
TICK = 0.002
LONGEST = 300.0
"""Seconds that the last answers are waited for."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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
    command += ["--port", "{port}", "--log-level", "warning"]
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": "What is the capital of Spain?"}],
        "n": ROWS,
        **subject.length(ANSWER_TOKENS),
    }
    with tempfile.TemporaryDirectory() as name:
        with running(command, "/ping", Path(name)) as (url, _):
            port = int(url.rpartition(":")[2])
            pings = [_ping(url) for _ in range(scale.pick(200, 10))]
            most = capacity(port, fields, CLIENTS, scale.pick(10.0, 2.0))
            answers = asyncio.run(flood(port, fields, LOAD * most, scale.pick(SECONDS, 3.0)))
    refused = [1e3 * one.seconds for one in answers if one.status == 429]
    good = [one.seconds for one in answers if one.status == 200]
    yield Row(
        "refusal",
        f"{subject.name}, {most:.0f} requests/s answered, {LOAD * most:.0f} asked",
        Side("p99 of a refusal", "ms", [percentile(refused, 99)]),
        Side("p99 of /ping of an idle server", "ms", [1e3 * percentile(pings, 99)]),
        [percentile(refused, 99)],
        {
            "refused": len(refused),
            "refused_p50_ms": percentile(refused, 50),
            "refused_slowest_ms": max(refused),
            "answered": len(good),
            "answered_p50_seconds": percentile(good, 50),
            "failed": len(answers) - len(refused) - len(good),
        },
    )


def capacity(port: int, fields: dict[str, Any], clients: int, seconds: float) -> float:
    """Count the requests that are answered in a second, of clients that wait for their answers."""

    async def ask() -> int:
        answers: list[Answer] = []
        idle: list[Connection] = []
        start = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < start + seconds:
                await _ask(port, _request(fields), idle, answers, start)

        await asyncio.gather(*(client() for _ in range(clients)))
        return sum(one.status == 200 and one.sent + one.seconds <= seconds for one in answers)

    return asyncio.run(ask()) / seconds


async def flood(port: int, fields: dict[str, Any], rate: float, seconds: float) -> list[Answer]:
    """Send requests at a steady rate, whatever becomes of those before, and wait for all answers.

    A connection is used again once its answer has come, as clients do that keep a pool.

    Args:
        port: The server's, on this machine.
        fields: Each request's.
        rate: Requests in a second.
        seconds: How long.
    """
    answers: list[Answer] = []
    idle: list[Connection] = []
    asked: list[asyncio.Task[None]] = []
    data = _request(fields)
    start = time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        while len(asked) < now * rate:
            asked.append(asyncio.ensure_future(_ask(port, data, idle, answers, start)))
        await asyncio.sleep(TICK)
    await asyncio.wait_for(asyncio.gather(*asked), LONGEST)
    for _, writer in idle:
        writer.close()
    return answers


async def _ask(
    port: int, data: bytes, idle: list[Connection], answers: list[Answer], start: float
) -> None:
    sent = time.perf_counter()
    status, head, body = 0, b"", b""
    writer: asyncio.StreamWriter | None = None
    try:
        connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        reader, writer = connection
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.split(b"content-length: ")[1].split()[0]))
        status = int(head.split()[1])
        idle.append(connection)
    except (OSError, EOFError):
        if writer is not None:
            writer.close()
    answers.append(Answer(sent - start, status, time.perf_counter() - sent, head, body))


def _request(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        f"\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _ping(url: str) -> float:
    start = time.perf_counter()
    HTTP.open(f"{url}/ping", timeout=LONGEST).close()
    return time.perf_counter() - start
