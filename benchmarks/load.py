"""The load generator, a process of its own: `python -m benchmarks.load` reads a plan, writes times.

It imports nothing but the standard library, and talks to a server as a client does: over HTTP, with
a connection for each request.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["closed_loop", "pings", "run"]

# The server is on this machine: no proxy of the environment's is asked for it.
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TIMEOUT = 300
PING_INTERVAL = 0.01


def run(kind: str, **plan: Any) -> Any:
    """Run a plan in a process of its own.

    Args:
        kind: ``closed_loop`` or ``pings``.
        plan: The arguments of the function of that name.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", kind],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def closed_loop(url: str, clients: int, payloads: list[Any]) -> dict[str, Any]:
    """Send requests from a number of clients, each of which waits for its answer.

    Args:
        url: The server's.
        clients: How many requests are under way at once.
        payloads: The requests; the clients take them in order.

    Returns:
        The seconds from the first request to the last answer, and each request's, and the answers'
        tokens as the server counts them.
    """
    answers: list[Any] = []

    def send(payload: Any) -> float:
        start = time.perf_counter()
        answers.extend(_post(url, payload))
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        latencies = list(pool.map(send, payloads))
        seconds = time.perf_counter() - start
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    return {"seconds": seconds, "latencies": latencies, "tokens": tokens}


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
            _post(url, payload)
        lasted.append(time.perf_counter() - start)
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    latencies: list[float] = []
    while not over.is_set():
        start = time.perf_counter()
        _HTTP.open(f"{url}/ping", timeout=TIMEOUT).close()
        latencies.append(time.perf_counter() - start)
        time.sleep(max(0.0, PING_INTERVAL - latencies[-1]))
    worker.join()
    return {"seconds": lasted[0], "latencies": latencies}


def _post(url: str, payload: Any) -> list[Any]:
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json"},
    )
    with _HTTP.open(request, timeout=TIMEOUT) as response:
        return json.load(response)


if __name__ == "__main__":
    kinds = {"closed_loop": closed_loop, "pings": pings}
    print(json.dumps(kinds[sys.argv[1]](**json.load(sys.stdin))))
