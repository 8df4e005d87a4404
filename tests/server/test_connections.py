"""Connections: how many there may be, how long they may say nothing, and what they are refused."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx.server import run
from mlflow_phi3_onnx.server.run import Server, serve
from mlflow_phi3_onnx.server.settings import ServerSettings
from tests.support.doors import SPAIN
from tests.support.http_server import CHAT_HEAD, Running, read_reply, running, until

if TYPE_CHECKING:
    from collections.abc import Sequence

STORY = {"messages": SPAIN, "min_tokens": 4000}
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_full_queue_is_told_before_the_body_is_there() -> None:
    with running(max_running=1, max_queue=0) as served, served.send(STORY):
        until(lambda: served.metric("num_requests_running") == 1)
        for kind in (b"Content-Length: 3000000", b"Transfer-Encoding: chunked"):
            with served.connect() as connection:
                connection.sendall(CHAT_HEAD + kind + b"\r\n\r\n")
                reply = read_reply(connection)
                assert (reply.status, reply.error["code"]) == (429, "queue_full")
                assert int(reply.headers["retry-after"]) >= 1
        # A client that does not know yet sends its body, and goes on with the connection.
        body = json.dumps({"messages": SPAIN, "user": "x" * 1_000_000}).encode()
        with served.connect() as connection:
            for _ in range(2):
                connection.sendall(CHAT_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert read_reply(connection).status == 429
            connection.sendall(PING)
            assert read_reply(connection).status == 200
        assert served.get("/v1/models").status == 200


def test_a_model_that_has_room_answers_beside_one_that_has_not() -> None:
    with (
        running({"a": None, "b": None}, max_running=1, max_queue=0) as served,
        served.send({**STORY, "model": "a"}),
    ):
        until(lambda: served.metric("num_requests_running", model_name="a") == 1)
        assert served.chat({"messages": SPAIN, "model": "a"}).status == 429
        assert served.chat({"messages": SPAIN, "model": "b"}).status == 200


def test_a_connection_too_many_is_refused_and_probes_are_answered() -> None:
    with running(max_connections=4) as served, ExitStack() as stack:
        kept = [stack.enter_context(served.connect()) for _ in range(4)]
        until(lambda: len(served.server.server_state.connections) == 4)
        reply = served.get("/v1/models")
        assert (reply.status, reply.error["code"]) == (503, "too_many_connections")
        assert reply.headers["connection"] == "close"
        assert int(reply.headers["retry-after"]) >= 1
        assert served.get("/health").status == served.get("/ready").status == 200
        kept[0].sendall(PING)
        assert read_reply(kept[0]).status == 200
        kept[1].close()
        until(lambda: served.get("/v1/models").status == 200)


def test_a_crowd_of_connections_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_phi3_onnx.server.connection._SPARE", 1)
    with running(max_connections=1) as served, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(served.connect())
        until(lambda: len(served.server.server_state.connections) == 2)
        with served.connect() as connection:
            assert ended(connection)


def test_one_that_says_nothing_or_reads_nothing_is_ended() -> None:
    wide: dict[str, Any] = {"messages": SPAIN, "n": 16, "logprobs": True, "top_logprobs": 20,
                            "min_tokens": 60, "max_tokens": 60}  # fmt: skip
    with running(receive_timeout=0.5, send_timeout=0.5) as served:
        with served.connect() as connection:
            assert ended(connection)
        with served.connect() as connection:  # a byte now and then is no request
            for byte in b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX-Pad: ":
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    break
                if hung_up_within(connection, 0.05):
                    break
            else:
                pytest.fail("it may send headers for ever")
        with served.connect() as connection:  # one that is between two requests
            connection.sendall(PING)
            assert read_reply(connection).status == 200
            assert ended(connection)
        # A whole response that nobody reads is kept no longer.
        body = json.dumps(wide).encode()
        with narrow(served) as connection:
            connection.sendall(CHAT_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            until(lambda: served.metric("request_success_total") == 16)
            until(lambda: len(served.server.server_state.connections) <= 1)


@pytest.mark.parametrize("tls", [False, True])
def test_one_that_reads_slowly_gets_all_of_it(
    tls: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than either time limit, and more than the system's buffers hold."""
    long = "x" * 1_000_000
    monkeypatch.setattr("mlflow_phi3_onnx.server.probes.version", lambda _: long)
    files = request.getfixturevalue("tls_files") if tls else {}
    with running(receive_timeout=0.3, send_timeout=1, **files) as served:
        with narrow(served) as plain, secure(plain) if tls else plain as connection:
            connection.sendall(PING.replace(b"/ping", b"/version"))
            data = b""
            while not data.endswith(b"}") and (part := connection.recv(16384)):
                data += part
                time.sleep(0.005)
        assert data.startswith(b"HTTP/1.1 200")
        assert data.endswith(f'"mlflow":"{long}"}}'.encode())


def test_one_that_asks_again_and_again_and_reads_nothing_is_ended() -> None:
    with running(send_timeout=0.5) as served, narrow(served) as connection:
        connection.sendall(DOCUMENT * 100)
        until(lambda: served.metric("http_requests_total", status="499") == 1)
        until(lambda: not served.server.server_state.connections)
        assert served.metric("http_requests_total", route="/openapi.json", status="200") < 100


@pytest.mark.parametrize(
    ("data", "status", "route"),
    [(b"GET /ping HTTP/1.1\r\n\r\n", 400, "unmatched"),
     (PING + b"nonsense\r\n\r\n" + PING, 400, "unmatched"),
     (CHAT_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + PING, 400, "unmatched"),
     (CHAT_HEAD + b"X: " + b"x" * 40_000, 431, "unmatched"),
     (CHAT_HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + PING,
      400, "/v1/chat/completions"),
     (CHAT_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\nnonsense\r\n\r\n" + PING,
      400, "/v1/chat/completions")],
)  # fmt: skip
def test_what_is_no_request_is_refused_as_others_are(
    data: bytes, status: int, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlflow_phi3_onnx")
    with running(lazy=True) as served:
        with served.connect() as connection:
            if data.startswith(PING):
                connection.sendall(PING)
                assert read_reply(connection).status == 200
            connection.sendall(data.removeprefix(PING))
            reply = read_reply(connection)
            assert ended(connection)
        assert (reply.status, reply.error["type"]) == (status, "invalid_request_error")
        assert reply.headers["connection"] == "close"
        counted = {"route": route, "status": str(status)}
        until(lambda: served.metric("http_requests_total", **counted) == 1)
    lines = [getattr(record, "request", {}) for record in caplog.records]
    (line,) = [one for one in lines if one.get("request_id") == reply.headers["x-request-id"]]
    assert (line["route"], line["status"]) == (route, status)


def test_a_head_is_a_get_without_its_body() -> None:
    with running(lazy=True) as served:
        told, got = (served.ask(method, "/v1/models") for method in ("HEAD", "GET"))
        assert (told.status, told.body) == (200, b"")
        assert told.headers["content-length"] == got.headers["content-length"]
        assert served.ask("HEAD", "/v1/completions").status == 405


def narrow(served: Running) -> socket.socket:
    """Connect with a small buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((served.host, served.port))
    return connection


def secure(connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection, in whichever way."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def hung_up_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return ended(connection)
    except TimeoutError:
        return False


def test_no_part_of_an_answer_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP_NODELAY, which a listener has to have for asyncio's connections to have it."""
    found: list[int] = []

    def accept(_: Server, sockets: Sequence[socket.socket]) -> None:
        (listener,) = sockets
        with socket.create_connection(listener.getsockname()), listener:
            accepted, _ = listener.accept()
            with accepted:
                found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Server, "run", accept)
    monkeypatch.setattr(run, "set_up_logs", lambda _: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    serve({"x": None}, ServerSettings(port=0, lazy=True))
    assert found
    assert all(found)
