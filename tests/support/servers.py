"""MLflow's scoring server in a process of its own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from benchmarks.serving import HTTP, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["HTTP", "Server", "serve"]


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
    with server(f"models:/{name}@champion", folder, **environment) as (url, log):
        yield Server(url, log)
