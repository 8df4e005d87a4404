"""The package's HTTP server, in a thread of this process or in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel

from mlflow_phi3_onnx.server.run import Server, make_server
from mlflow_phi3_onnx.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

__all__ = [
    "CHAT_HEAD",
    "Capital",
    "Reply",
    "Running",
    "in_process",
    "make_certificate",
    "read_reply",
    "running",
    "until",
]

TIMEOUT = 60

CHAT_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
"""The beginning of a request."""


class Capital(BaseModel):
    """What is asked for in structured outputs."""

    country: Literal["Spain", "Peru"]
    large: bool


class Reply(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's form, and nothing beside it."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        """The data of each event of a stream, whose comments are left out."""
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == ""
        return [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]


class Running:
    """A server that runs."""

    def __init__(self, host: str, port: int, server: Server | None = None) -> None:
        self.host = host
        self.port = port
        self.url = f"http://{host}:{port}"
        self._server = server

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, told, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Reply:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, body, {"Content-Type": "application/json", **(headers or {})})

    def chat(self, fields: Mapping[str, Any]) -> Reply:
        return self.post("/v1/chat/completions", fields)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=TIMEOUT)

    def send(self, value: Any, path: str = "/v1/chat/completions") -> socket.socket:
        """Send a request, and return the connection without reading from it."""
        body = json.dumps(value).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection = self.connect()
        connection.sendall(head.encode() + body)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """Sum up the samples of a metric that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [
            line.rpartition(" ")
            for line in self.get("/metrics").body.decode().splitlines()
            if line.startswith((f"onnx_genai:{name}{{", f"onnx_genai:{name} "))
        ]
        return sum(float(value) for head, _, value in samples if all(w in head for w in wanted))


def read_reply(connection: socket.socket) -> Reply:
    """Read one response, and no more."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return Reply(int(first.split()[1]), headers, body)


@contextmanager
def running(places: Mapping[str, str | None] | None = None, **settings: Any) -> Generator[Running]:
    """Run a server in a thread; by default with the demo model and the slots loop."""
    given = {"port": 0, "model_config": {"loop": "slots"}, **settings}
    server = make_server(places or {"demo": None}, ServerSettings.check(given))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(*server.address, server)
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@contextmanager
def in_process(
    *arguments: str, log: Path, **environment: str
) -> Generator[tuple[Running, subprocess.Popen[bytes]]]:
    """Run ``mlflow-phi3-onnx serve`` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow_phi3_onnx.cli", "serve", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    served = Running("127.0.0.1", port)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return served.get("/health").status == 200
        except OSError:
            return False

    try:
        until(answers)
        yield served, process
    finally:
        process.kill()
        process.wait(TIMEOUT)


def make_certificate(folder: Path, *more: str) -> dict[str, str]:
    """Make a certificate for 127.0.0.1 and its key; return where they are, as settings."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate), *(more or ["-nodes"])],
        check=True, capture_output=True,
    )  # fmt: skip
    return {"tls_cert": str(certificate), "tls_key": str(key)}


def until(holds: Any) -> None:
    """Wait until something holds; a test's own time limit ends a wait that is in vain."""
    end = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)
