"""MLflow's scoring server in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HTTP", "Server", "serve"]

# The server is on this machine: no proxy of the environment's is asked for it.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def post(self, payload: Any) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{self.url}/invocations",
            data=json.dumps(payload).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with HTTP.open(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                body = error.read().decode()
            return error.code, json.loads(body) if body.startswith("{") else body


def serve(folder: Path, name: str, **environment: str) -> Iterator[Server]:
    """Serve a registered model until the caller is done with it.

    Args:
        folder: Where the registry's database is.
        name: The model, whose version has the alias champion.
        environment: Variables of the server's environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"{name}-{port}.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@champion"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)],
            env={
                **os.environ,
                **environment,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                # MLflow starts uvicorn by name, wherever the interpreter was started from.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        wait(f"http://127.0.0.1:{port}/ping", process, log)
        yield Server(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(30)


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            HTTP.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
