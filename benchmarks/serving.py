"""`mlflow models serve`, and other servers, as processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["HTTP", "free_port", "running", "served", "server"]

# The server is on this machine: no proxy of the environment's is asked for it.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))
START_TIMEOUT = 180
STOP_TIMEOUT = 30


@contextmanager
def served(model: Path) -> Generator[str]:
    """Serve a saved model with MLflow's scoring server, and return its URL."""
    with tempfile.TemporaryDirectory() as name, server(str(model), Path(name)) as (url, _):
        yield url


@contextmanager
def server(uri: str, folder: Path, **environment: str) -> Generator[tuple[str, Path]]:
    """Serve a model with MLflow's scoring server, and return its URL and its log.

    Args:
        uri: The model.
        folder: Where the server runs, with the store ``mlflow.db`` and the log in it.
        environment: More variables of the server's environment.

    Raises:
        RuntimeError: If the server does not come up; the message is its log.
    """
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", "{port}"]
    with running(command, "/ping", folder, **environment) as served:
        yield served


@contextmanager
def running(
    command: list[str], health: str, folder: Path, **environment: str
) -> Generator[tuple[str, Path]]:
    """Run a server until the caller is done with it, and return its URL and its log.

    Args:
        command: Its command line, with ``{port}`` for a free port of 127.0.0.1.
        health: The path that answers once it is ready.
        folder: Where it runs, with the store ``mlflow.db`` and the log in it.
        environment: More variables of its environment.

    Raises:
        RuntimeError: If it does not come up; the message is its log.
    """
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    log = folder / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [word.replace("{port}", port) for word in command],
            env={
                **os.environ,
                **environment,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                # Servers are started by name, wherever the interpreter was started from.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        _wait(f"{url}{health}", process, log)
        yield url, log
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT)


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"The server did not start:\n{log.read_text()}")
        try:
            HTTP.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
