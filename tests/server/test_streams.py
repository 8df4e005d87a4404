"""Streams, byte for byte where clients care, and what becomes of those that nobody reads."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.doors import SPAIN
from tests.support.http_server import Reply, Running, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = "/v1/chat/completions"
LONG = {"messages": SPAIN, "min_tokens": 4000, "stream": True}
"""Takes far longer than any test waits for."""

WIDE = {**LONG, "logprobs": True, "top_logprobs": 20}
"""The same, with more bytes than the buffers of a connection hold."""


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    with running(timeout=0.5, send_timeout=0.5, stream_buffer=100_000) as served:
        yield served


def chunks(reply: Reply) -> list[dict[str, Any]]:
    *events, last = reply.events
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def test_a_chat(server: Running) -> None:
    reply = server.chat({"messages": SPAIN, "stream": True, "n": 2})
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-request-id"].startswith("req-")
    seen = chunks(reply)
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in seen}) == 1
    assert seen[0]["object"] == "chat.completion.chunk"
    assert seen[0]["model"] == "demo"
    for index in (0, 1):
        own = [c["choices"][0] for c in seen if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own].count(None) == len(own) - 1
        assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "stop")
        text = "".join(choice["delta"].get("content", "") for choice in own)
        assert text == "The capital of Spain is Madrid."
    assert all("usage" not in chunk for chunk in seen)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True),
     ({"include_usage": None}, False)],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_the_usage_comes_where_it_is_asked_for(
    server: Running, path: str, options: Any, wanted: bool
) -> None:
    asked = {"messages": SPAIN} if path == CHAT else {"prompt": "The capital of Spain"}
    fields = {**asked, "stream": True, "stream_options": options, "max_tokens": 3}
    last = chunks(server.post(path, fields))[-1]
    assert (last["choices"] == []) is wanted
    if wanted:
        assert last["usage"]["completion_tokens"] == 3


def test_completions(server: Running) -> None:
    fields = {"prompt": ["The capital of Spain is", "The capital of"], "max_tokens": 2}
    whole = server.post("/v1/completions", fields).json
    seen = chunks(server.post("/v1/completions", {**fields, "stream": True}))
    assert {chunk["object"] for chunk in seen} == {"text_completion"}
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in seen if c["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_an_error_before_the_first_chunk_has_a_status(server: Running) -> None:
    reply = server.chat({"messages": SPAIN, "stream": True, "max_tokens": 0})
    assert (reply.status, reply.error["param"]) == (400, "max_tokens")
    reply = server.chat({"messages": SPAIN, "stream": True, "stream_options": {"x": 1}})
    assert (reply.status, reply.error["param"]) == (400, "stream_options")


def test_an_error_later_is_an_event(impatient: Running) -> None:
    reply = impatient.chat(LONG)
    assert reply.status == 200
    *_, error = chunks(reply)
    assert set(error) == {"error"}
    assert error["error"]["code"] == "timeout"
    assert "within 0.5 seconds" in error["error"]["message"]
    assert impatient.chat({"messages": SPAIN, "max_tokens": 1}).status == 200


def test_a_whole_response_that_takes_too_long(impatient: Running) -> None:
    reply = impatient.chat({**LONG, "stream": False})
    assert (reply.status, reply.error["code"]) == (504, "timeout")
    until(lambda: impatient.metric("batch_size") == 0)


def test_comments_keep_a_long_prefill_alive() -> None:
    text = "Please think of it. " * 600
    with running(keepalive_interval=0.004, model_config={"loop": "genai"}) as served:
        fields = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "stream": True}
        reply = served.chat(fields)
    blocks = reply.body.decode().split("\n\n")
    assert blocks[1] == ": keep-alive"  # after the role, before the first token
    assert len(chunks(reply)) == 4


def test_comments_come_while_a_stream_waits_in_the_queue() -> None:
    with (
        running(max_running=1, keepalive_interval=0.1, timeout=3) as served,
        served.send({**LONG, "stream": False}),
    ):
        until(lambda: served.metric("num_requests_running") == 1)
        with served.send(LONG) as waiting:
            data = b""
            while b"keep-alive" not in data:
                data += waiting.recv(65536)
            assert data.startswith(b"HTTP/1.1 200")
            assert served.metric("num_requests_waiting") == 1
            while part := waiting.recv(65536):
                data += part
                if data.endswith(b"0\r\n\r\n"):
                    break
    assert b'"code":"timeout"' in data
    assert b"data: [DONE]" in data


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_shows_it(server: Running) -> None:
    body = json.dumps({"messages": SPAIN, "stream": True})
    command = ["curl", "-sN", "--noproxy", "*", server.url + CHAT, "-d", body]
    command += ["-H", "Content-Type: application/json"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith('data: {"id":"chatcmpl-')
    assert out.endswith("}\n\ndata: [DONE]\n\n")


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_shows_it_while_it_is_written() -> None:
    with running() as served:
        command = ["curl", "-sN", "--noproxy", "*", served.url + CHAT, "-d", json.dumps(LONG)]
        command += ["-H", "Content-Type: application/json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(3):
                assert process.stdout.readline().startswith(b"data: {")
                assert process.stdout.readline() == b"\n"
            assert served.metric("num_requests_running") == 1
            process.kill()
        until(lambda: cancelled(served) == 1)


def cancelled(served: Running) -> float:
    return served.metric("requests_cancelled_total")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("loop", ["genai", "slots"])
def test_a_client_that_goes_in_the_middle(loop: str, stream: bool) -> None:
    with running(model_config={"loop": loop}) as served:
        connection = served.send({**LONG, "stream": stream})
        until(lambda: served.metric("batch_size") == 1)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
        until(lambda: cancelled(served) == 1)
        until(lambda: served.metric("batch_size") == 0)
        assert served.metric("num_requests_running") == 0
        status = {"status": "499", "route": CHAT}
        assert served.metric("http_requests_total", **status) == 1
        assert served.metric("generation_tokens_total") < 4000
        assert served.chat({"messages": SPAIN, "max_tokens": 1}).status == 200


def test_a_client_that_goes_within_a_prefill() -> None:
    text = "Please think of it. " * 700
    with running(max_running=1) as served:
        fields = {"messages": [{"role": "user", "content": text}], "min_tokens": 500}
        connection = served.send(fields)
        until(lambda: served.metric("num_requests_running") == 1)
        connection.close()
        until(lambda: cancelled(served) == 1)
        assert served.chat({"messages": SPAIN, "max_tokens": 1}).status == 200


def test_a_client_that_goes_while_it_waits() -> None:
    with running(max_running=1) as served:
        first = served.send(LONG)
        until(lambda: served.metric("num_requests_running") == 1)
        second = served.send(LONG)
        until(lambda: served.metric("num_requests_waiting") == 1)
        second.close()
        until(lambda: served.metric("num_requests_waiting") == 0)
        assert served.metric("num_requests_running") == 1
        first.close()
        until(lambda: served.metric("num_requests_running") == 0)
        assert cancelled(served) == 2


def slow(served: Running, fields: dict[str, Any]) -> socket.socket:
    """A client with small buffers that does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((served.host, served.port))
    body = json.dumps(fields).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_a_client_that_reads_too_slowly_is_cut_off() -> None:
    with running(stream_buffer=8) as served, slow(served, {**WIDE, "n": 4}) as connection:
        until(lambda: cancelled(served) == 1)
        until(lambda: served.metric("batch_size") == 0)
        assert hung_up(connection)
        assert served.metric("generation_tokens_total") < 4 * 4000


def test_a_client_that_stops_reading_is_cut_off() -> None:
    # The buffer holds all of the completion, so that only the time tells.
    with (
        running(send_timeout=0.5, stream_buffer=100_000) as served,
        slow(served, {**WIDE, "n": 8, "min_tokens": 1500, "max_tokens": 1500}) as connection,
    ):
        until(lambda: cancelled(served) == 1)
        assert hung_up(connection)


def hung_up(connection: socket.socket) -> bool:
    """Whether the server has ended the connection, in the middle of a response."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        return True
    return not data.endswith(b"0\r\n\r\n")
