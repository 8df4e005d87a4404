"""Requests to an OpenAI base URL, and the events of their responses.

Each request has a connection of its own, straight to the URL's host, whatever proxies the
environment names: what is measured is the server.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_phi3_onnx.errors import GenerationError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["KEY_VARIABLE", "BaseURL", "HTTPError", "is_url"]

KEY_VARIABLE = "OPENAI_API_KEY"
"""Holds the key that servers are asked with, as OpenAI's own client reads it."""

_DATA, _DONE = b"data:", b"[DONE]"


class HTTPError(GenerationError):
    """A response that is no answer.

    Args:
        message: What was asked and what came.
        status_code: The HTTP status.
    """

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


def is_url(place: object) -> bool:
    """Tell whether a place is a URL of HTTP."""
    return isinstance(place, str) and place.startswith(("http://", "https://"))


class BaseURL:
    """An OpenAI base URL, such as ``http://127.0.0.1:8000/v1``.

    Args:
        url: The URL.
        param: The argument that it came in.
        timeout: Seconds after which a server that says nothing is given up.

    Raises:
        InvalidRequestError: If it is no URL of a server, or has more in it than a place.
    """

    def __init__(self, url: str, param: str, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if not self._host or parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidRequestError(
                f"{param} must be a base URL with a host and maybe a port and a path, such as"
                f" http://127.0.0.1:8000/v1. A key belongs into {KEY_VARIABLE}.",
                param=param,
            )
        secure = parts.scheme == "https"
        self._connection = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        self.shown = f"{parts.scheme}://{parts.netloc}{self._path}"

    def get(self, path: str) -> Any:
        """Return the JSON that is at a path.

        Raises:
            HTTPError: If the server answers with another status than 200, or with no JSON.
            OSError: If there is no connection, or it breaks.
        """
        with self._asked("GET", path, None) as response:
            return self._json(path, response.read())

    def events(self, path: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post a request, and yield the objects of the event stream that comes back.

        Raises:
            HTTPError: If the server answers with another status than 200, or with an error in its
                stream.
            OSError: If there is no connection, or it breaks, or the stream has no end.
        """
        with self._asked("POST", path, json.dumps(payload).encode()) as response:
            for line in response:
                if not line.startswith(_DATA):
                    continue
                data = line.removeprefix(_DATA).strip()
                if data == _DONE:
                    return
                event = self._json(path, data)
                if "error" in event:
                    raise HTTPError(f"{self.shown}{path} sent an error in its stream.", 200)
                yield event
        raise ConnectionError("the stream has no end")

    def _json(self, path: str, text: bytes) -> Any:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise HTTPError(f"{self.shown}{path} sent no JSON object.", 200)
        return found

    @contextmanager
    def _asked(
        self, method: str, path: str, body: bytes | None
    ) -> Generator[http.client.HTTPResponse]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        connection = self._connection(self._host, self._port, timeout=self._timeout)
        with closing(connection):
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.request(method, f"{self._path}{path}", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                status = response.status
                raise HTTPError(f"{self.shown}{path} answered with HTTP {status}.", status)
            yield response
