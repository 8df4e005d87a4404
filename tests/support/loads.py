"""Sides of a load that do what a real one cannot be made to do."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.evaluation.load.side import Usage
from mlflow_phi3_onnx.evaluation.side import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from mlflow_phi3_onnx.evaluation.load.side import LoadPrompt

__all__ = ["ScriptedSide", "scripted_server"]


class ScriptedSide:
    """Answers with as many chunks as it is asked for, once all parties of a barrier are there.

    Args:
        parties: How many requests have to be under way before one is answered.
        error: What each request fails with.
    """

    def __init__(self, parties: int = 1, error: Exception | None = None) -> None:
        self.label = "scripted"
        self.place = Place()
        self.notes: list[str] = []
        self.prompts: list[LoadPrompt] = []
        self.running = self.most = 0
        self._error = error
        self._barrier = threading.Barrier(parties, timeout=60)
        self._lock = threading.Lock()

    def prompt(self, tokens: int, shared: int, seed: object, number: int) -> str:
        return f"{seed} {number}: {shared} of {tokens}"

    def send(self, prompt: LoadPrompt, tokens: int, chunk: Callable[[], object]) -> Usage:
        with self._lock:
            self.prompts.append(prompt)
            self.running += 1
            self.most = max(self.most, self.running)
        self._barrier.wait()
        for _ in range(tokens):
            chunk()
        with self._lock:
            self.running -= 1
        if self._error is not None:
            raise self._error
        return Usage(7, tokens)


@contextmanager
def scripted_server(
    answer: Callable[[str, dict[str, Any]], tuple[int, list[str]]],
) -> Generator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Run a server at a base URL whose every response is made by a function.

    Args:
        answer: Makes a status and the lines of a body of a path and a request's JSON.

    Yields:
        The base URL, and the paths and bodies of the requests so far.
    """
    asked: list[tuple[str, dict[str, Any]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, [json.dumps({"data": [{"id": "first"}, {"id": "second"}]})])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            self._send(*answer(self.path, body))

        def _send(self, status: int, lines: list[str]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(f"{line}\n\n" for line in lines).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
