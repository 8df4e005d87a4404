"""What the package's own load test has not: MLflow's scoring server as a side, and pings of it."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from benchmarks.serving import HTTP
from benchmarks.subject import tokens_of
from mlflow_phi3_onnx.evaluation.load.side import Usage
from mlflow_phi3_onnx.evaluation.side import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.subject import Subject
    from mlflow_phi3_onnx.evaluation.load.side import LoadPrompt

__all__ = ["ScoringServer", "pings"]

TIMEOUT = 300
PING_INTERVAL = 0.01


class ScoringServer:
    """MLflow's scoring server, which answers a request as a whole.

    Args:
        url: Its URL.
        subject: The model that it serves.
    """

    def __init__(self, url: str, subject: Subject) -> None:
        self._url = url
        self._subject = subject
        self.label = f"{subject.name} in mlflow models serve"
        self.place = Place(subject.name)
        self.notes: list[str] = []

    def prompt(self, tokens: int, shared: int, seed: object, number: int) -> str:
        """Write a prompt."""
        same = self._subject.prompts.text(shared, "shared") if shared else ""
        return f"{same} {self._subject.prompts.text(tokens - shared, seed, number)}".strip()

    def send(self, prompt: LoadPrompt, tokens: int, chunk: Callable[[], object]) -> Usage:
        """Let it continue a prompt; what comes is one chunk."""
        answers = post(self._url, {"prompt": prompt, **self._subject.length(tokens)})
        chunk()
        return Usage(None, tokens_of(answers))


def pings(url: str, payload: Any | None, seconds: float) -> dict[str, Any]:
    """Ask ``/ping`` again and again, while a request is computed or for some time.

    Args:
        url: The server's.
        payload: The request; None asks an idle server.
        seconds: How long to ask an idle server.

    Returns:
        The seconds of each ping that was sent before the request was answered, and of the request.
    """
    over = threading.Event()
    lasted: list[float] = []

    def work() -> None:
        start = time.perf_counter()
        if payload is None:
            time.sleep(seconds)
        else:
            post(url, payload)
        lasted.append(time.perf_counter() - start)
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    latencies: list[float] = []
    while not over.is_set():
        start = time.perf_counter()
        HTTP.open(f"{url}/ping", timeout=TIMEOUT).close()
        latencies.append(time.perf_counter() - start)
        time.sleep(max(0.0, PING_INTERVAL - latencies[-1]))
    worker.join()
    return {"seconds": lasted[0], "latencies": latencies}


def post(url: str, payload: Any) -> list[dict[str, Any]]:
    """Send a payload to MLflow's scoring server, with a connection for it alone."""
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json"},
    )
    with HTTP.open(request, timeout=TIMEOUT) as response:
        return json.load(response)
