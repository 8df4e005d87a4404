"""What every request goes through: its id, its key, its size, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Match, Route

from mlflow_phi3_onnx.server.body import to_json
from mlflow_phi3_onnx.server.errors import (
    DrainingError,
    HeadersTooLargeError,
    HostError,
    InvalidHTTPError,
    SlowClientError,
    TooManyConnectionsError,
    as_server_error,
)
from mlflow_phi3_onnx.server.logs import log_failure, log_request
from mlflow_phi3_onnx.server.page import PAGE
from mlflow_phi3_onnx.server.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mlflow_phi3_onnx.errors import GenAIError
    from mlflow_phi3_onnx.server.auth import Keys
    from mlflow_phi3_onnx.server.door import Door

__all__ = ["PROBES", "Gate", "error_response"]

PROBES = frozenset({"/ping", "/health", "/ready"})
"""The paths that need no key, and are answered while the server ends."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_PORT = re.compile(r"(?<=[^:]):\d*$")
# The label of an exemplar has at most 128 characters in OpenMetrics, with its name, request_id.
_ID = re.compile(rb"[A-Za-z0-9._-]{1,118}")
_PART = 1 << 14
"""Bytes that a client has to take within ``send_timeout``."""

_PER_HEADER = 4  # a colon, a space, and the end of the line


class Gate:
    """An ASGI application around that with the routes.

    Args:
        app: The routes.
        door: What they share.
        keys: Who may ask.
        hosts: The names that the server may be asked for; none means any.
        routes: The routes, which requests are counted by.
    """

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        keys: Keys,
        hosts: Collection[str] = (),
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._app = app
        self._door = door
        self._keys = keys
        self._routes = [route for route in routes if isinstance(route, Route)]
        self._posts = {route.path for route in self._routes if "POST" in (route.methods or ())}
        self._hosts = frozenset(host.lower() for host in hosts)
        self._open = PROBES | {PAGE} | ({"/metrics"} if door.settings.open_metrics else frozenset())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # web sockets are closed
        record = Record(method=scope["method"] if scope["method"] in METHODS else "other")
        if known := _given_id(scope["headers"]):
            record.id = known
        scope.setdefault("state", {})["record"] = record
        if scope["method"] == "HEAD":  # is answered as GET; the connection leaves the body out
            scope = {**scope, "method": "GET"}
        record.route = self._route_of(scope) or record.route
        exchange = _Exchange(scope, receive, send, record, self._door.settings.send_timeout)
        self._door.working += 1
        try:
            self._check(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - a client learns of every failure
            failure = as_server_error(error)
            record.failed(failure)
            if failure is not error:
                log_failure(record, error)
            if not record.status:
                await error_response(failure)(scope, receive, exchange.send)
        finally:
            self._door.working -= 1
            self._door.metrics.add(record)
            log_request(
                record, logging.DEBUG if record.route in PROBES | {"/metrics"} else logging.INFO
            )

    def _route_of(self, scope: Scope) -> str | None:
        """Return the path of a request's route as it is declared, whether or not it gets there."""
        found = [(route.matches(scope)[0], route.path) for route in self._routes]
        matching = [path for match, path in found if match is Match.FULL]
        matching += [path for match, path in found if match is Match.PARTIAL]
        return matching[0] if matching else None

    def _check(self, scope: Scope) -> None:
        """Check what can be without the body.

        Raises:
            InvalidHTTPError: If it is no request, or could be read as two.
            HeadersTooLargeError: If there is too much of them.
            HostError: If the server was asked for by a name that is not one of its own.
            UnauthorizedError: If there is no key that is known, where one is needed.
            DrainingError: If the server takes no more requests.
            TooManyConnectionsError: If its connection is one too many.
            QueueFullError: If no model takes more, whatever the body says.
        """
        most = self._door.settings.max_header_bytes
        headers = scope["headers"]
        _check_readable(scope)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            raise InvalidHTTPError(
                "The request has both Content-Length and Transfer-Encoding, which could end it at"
                " two places. Send one of them."
            )
        size = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        size += sum(len(name) + len(value) + _PER_HEADER for name, value in headers)
        if size > most:
            raise HeadersTooLargeError(
                f"The request's headers are larger than {most:,} bytes, which is the most that this"
                " server takes (max_header_bytes)."
            )
        if self._hosts and _hosts_of(headers) - self._hosts:
            raise HostError(
                "The header Host names another server; this one may be asked for as"
                f" {', '.join(sorted(self._hosts))} (allowed_hosts)."
            )
        if scope["path"] not in self._open:
            self._keys.check(headers)
        if self._door.draining and scope["path"] not in PROBES | {"/metrics"}:
            raise DrainingError("The server is shutting down. Try again, maybe elsewhere.")
        if scope["state"].get("crowded") and scope["path"] not in PROBES:
            raise TooManyConnectionsError(
                "The server has as many connections as it takes (max_connections). Try again later."
            )
        if scope["method"] == "POST" and scope["path"] in self._posts:
            self._door.models.check_room()


class _Exchange:
    """A request's side of its connection.

    Args:
        scope: The request.
        receive: Gives what comes.
        send: Takes what is answered.
        record: What is told of the request.
        longest: Seconds that a client may take for a part of the response.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, record: Record, longest: float
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._record = record
        self._longest = longest

    async def receive(self) -> Message:
        """Receive the next part of the body, or the end of the connection."""
        message = await self._receive()
        _check_readable(self._scope)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response, in parts of its own that the client has to take in time."""
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            own = (b"x-request-id", self._record.id.encode())
            message["headers"] = [*message.get("headers", ()), own]
        for part in _parts(message):
            timer = asyncio.get_running_loop().call_later(self._longest, self._cut_off)
            try:
                await self._send(part)
            finally:
                timer.cancel()

    def _cut_off(self) -> None:
        self._record.left(SlowClientError("The client does not read its response."))
        self._scope["state"].get("abort", lambda: None)()


def _check_readable(scope: Scope) -> None:
    """Raise what the connection has found wrong with a request, or with the rest of its body."""
    if error := scope["state"].get("unreadable"):
        raise error


def _parts(message: Message) -> Iterator[Message]:
    """Split a body, so that sending each part waits until the one before is gone."""
    body = message.get("body", b"")
    for start in range(0, len(body), _PART):
        yield {**message, "body": body[start : start + _PART], "more_body": True}
    if not (body and message.get("more_body")):
        yield {**message, "body": b""} if body else message


def error_response(error: GenAIError) -> Response:
    """Write the response of an error."""
    body = to_json(error.to_openai())
    return Response(body, error.status, dict(error.headers), media_type="application/json")


def _hosts_of(headers: Iterable[tuple[bytes, bytes]]) -> set[str]:
    """Return the names in the header Host, without their ports."""
    hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
    return {_PORT.sub("", host).strip("[]") for host in hosts}


def _given_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the id that a client gave its request, where it can be one."""
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return value.decode()
    return None
