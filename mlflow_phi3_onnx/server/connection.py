"""A connection: how long it may say nothing, and what it gets that says no HTTP."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlflow_phi3_onnx.server.errors import HeadersTooLargeError, InvalidHTTPError

if TYPE_CHECKING:
    import asyncio

    import uvicorn

__all__ = ["HTTPConnection"]

_SPARE = 32
"""Connections beyond the most, for probes and refusals; any other is closed unheard."""

_UNSENT = 1 << 14
"""Bytes that the system takes beyond what it has sent, where it can be told."""

_UNREADABLE = b"UNREADABLE * HTTP/1.1\r\nHost: unknown\r\nConnection: close\r\n\r\n"
"""Stands for a request that cannot be read, and is refused as others are: by the gate."""


class HTTPConnection(H11Protocol):
    """HTTP/1.1 with OpenAI's errors, a time limit for headers, and a way to hang up.

    The gate watches that responses make progress. It can, because nothing that was sent is taken
    for sent while the transport still holds any of it.
    """

    def __init__(self, config: uvicorn.Config, *args: Any, **more: Any) -> None:
        super().__init__(config, *args, **more)
        self.app_state = {**self.app_state, "abort": self._abort}
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn has it
        """Wait for a request, but not for ever."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Else the system takes megabytes at once, and then for long no more of a slow reader.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        beyond = len(self.connections) - self.config.max_connections  # type: ignore[attr-defined] - as below
        self.app_state["crowded"] = beyond > 0
        if beyond > _SPARE:
            self._abort()
        self._wait()

    def on_response_complete(self) -> None:
        """Wait for the next request, in the same way."""
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        seconds = self.config.headers_timeout  # type: ignore[attr-defined] - set in make_server
        self._patience = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """Hang up, unless a request is being answered."""
        if self._answering:
            self._wait()
        else:
            self._abort()

    @property
    def _answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - says less
        """Have the gate refuse what is no HTTP, or too large."""
        problem = sys.exc_info()[1]
        error = InvalidHTTPError("The request is not valid HTTP/1.1.")
        if isinstance(problem, h11.RemoteProtocolError) and problem.error_status_hint == 431:
            error = HeadersTooLargeError("The request's headers are larger than this server takes.")
        if self._answering:  # the rest of the request's body
            self.cycle.scope.setdefault("state", {})["unreadable"] = error
            self.cycle.message_event.set()
        elif self.conn.our_state is h11.IDLE:
            self.app_state["unreadable"] = error
            self.conn = h11.Connection(h11.SERVER)
            self.conn.receive_data(_UNREADABLE)
            self.handle_events()
        else:
            self.transport.close()

    def _abort(self) -> None:
        self.transport.abort()
