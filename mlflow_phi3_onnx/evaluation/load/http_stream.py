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
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.files import parse_json_object
from mlflow_phi3_onnx.errors import GenerationError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from mlflow_phi3_onnx.core.checks import Check

__all__ = ["KEY_VARIABLE", "BaseURL", "HTTPError", "is_url", "member"]

T = TypeVar("T")
D = TypeVar("D")

KEY_VARIABLE = "OPENAI_API_KEY"
"""Holds the key that servers are asked with, as OpenAI's own client reads it."""

_DATA, _DONE = b"data:", b"[DONE]"


class HTTPError(GenerationError):
    """A response that is no answer.

    Args:
        message: What was asked and what came.
        status_code: The HTTP status.
        kind: What failures of this kind are called; by default they go by their status.
    """

    def __init__(self, message: str, status_code: int, kind: str | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.kind = kind or f"HTTP {status_code}"


def is_url(place: object) -> bool:
    """Tell whether a place is a URL of HTTP."""
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


def member(found: Mapping[str, Any], name: str, check: Check[T], default: D) -> T | D:
    """Return a member of what a server sent, checked; the default where it is missing or null.

    Raises:
        HTTPError: If it is not what it may be.
    """
    value = found.get(name)
    if value is None:
        return default
    try:
        return check(value)
    except (ValueError, OverflowError) as error:
        raise _broken(f"{name} must be {check.allowed}; it is {describe_kind(value)}.") from error


def _broken(why: str) -> HTTPError:
    return HTTPError(f"The server's answer is broken: {why}", 200, "broken answer")


class BaseURL:
    """An OpenAI base URL, such as ``http://127.0.0.1:8000/v1``.

    Args:
        url: The URL.
        param: The argument that it came in.
        timeout: Seconds after which a server that says nothing is given up.

    Raises:
        InvalidRequestError: If it is no URL of a server, or has more in it than a place; or if the
            key is none that a header can have.
    """

    def __init__(self, url: str, param: str, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts, self._host = urlsplit(""), ""
        more = parts.username or parts.password or parts.query or parts.fragment
        if not self._host or more or not _is_plain(url):
            raise InvalidRequestError(
                f"{param} must be a base URL with a host and maybe a port and a path, such as"
                " http://127.0.0.1:8000/v1, with other characters than ASCII's percent-encoded."
                f" A key belongs into {KEY_VARIABLE}.",
                param=param,
            )
        key = os.environ.get(KEY_VARIABLE)
        if key and not _is_plain(key):
            raise InvalidRequestError(
                f"{KEY_VARIABLE} must be printable ASCII characters without spaces and line breaks,"
                " as headers of HTTP have them. Set it to the key alone.",
                param=param,
            )
        self._key = key
        secure = parts.scheme == "https"
        self._connection = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        self.shown = f"{parts.scheme}://{parts.netloc}{self._path}"

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object that is at a path.

        Raises:
            HTTPError: If the server answers with another status than 200, or with no JSON object.
            OSError: If there is no connection, or it breaks.
        """
        with self._asked("GET", path, None) as response:
            return parse_json_object(response.read(), path, _broken)

    def events(self, path: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post a request, and yield the objects of the event stream that comes back.

        Raises:
            HTTPError: If the server answers with another status than 200, or with an error or
                anything but JSON objects in its stream.
            OSError: If there is no connection, or it breaks, or the stream has no end.
        """
        with self._asked("POST", path, json.dumps(payload).encode()) as response:
            for line in response:
                if not line.startswith(_DATA):
                    continue
                data = line.removeprefix(_DATA).strip()
                if data == _DONE:
                    return
                event = parse_json_object(data, "an event", _broken)
                if event.get("error") is not None:
                    message = f"{self.shown}{path} sent an error in its stream."
                    raise HTTPError(message, 200, "error in the stream")
                yield event
        raise ConnectionError("the stream has no end")

    @contextmanager
    def _asked(
        self, method: str, path: str, body: bytes | None
    ) -> Generator[http.client.HTTPResponse]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
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


def _is_plain(text: str) -> bool:
    """Tell whether a text can be in a line of HTTP as it is."""
    return text.isascii() and text.isprintable() and " " not in text
