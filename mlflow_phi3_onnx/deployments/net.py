"""Addresses that a local server listens on, and plain HTTP requests to them."""

from __future__ import annotations

import http.client
import os
import socket
from dataclasses import dataclass

_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - these are read, not bound


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: A name or an IP address; ``0.0.0.0`` and ``::`` mean every network.
        port: 1 to 65535.
    """

    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL that this machine reaches the server by, without a slash at its end."""
        host = self.reachable_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def reachable_host(self) -> str:
        """The host to connect to, which for "every network" is this machine."""
        return _WILDCARDS.get(self.host, self.host)


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        status: The HTTP status.
        body: The whole body.
    """

    status: int
    body: bytes


def request(
    address: Address, method: str, path: str, *, timeout: float, body: bytes | None = None
) -> Answer:
    """Send one request, straight to the address whatever proxies the environment names.

    Args:
        address: The server.
        method: The HTTP method.
        path: The path, with its leading slash.
        timeout: Seconds to wait for a connection, and for each part of the answer.
        body: A JSON body.

    Raises:
        OSError: There is no connection, or it broke, or the time is over (TimeoutError).
    """
    connection = http.client.HTTPConnection(address.reachable_host, address.port, timeout=timeout)
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except http.client.HTTPException as error:
        raise ConnectionError(f"the answer is not HTTP ({type(error).__name__})") from error
    finally:
        connection.close()


def free_port(host: str) -> int:
    """A port of the host that nothing listens on at this moment.

    Raises:
        OSError: The host is not an address of this machine.
    """
    return _bind(Address(host, 0))


def check_free(address: Address) -> None:
    """Return if a server could listen here now.

    Raises:
        OSError: The port is in use, or not allowed, or the host is no address of this machine.
    """
    _bind(address)


def _bind(address: Address) -> int:
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do, so that a port whose last server has just ended counts as free. On
        # Windows the option would let two servers share a port.
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
        return int(probe.getsockname()[1])
