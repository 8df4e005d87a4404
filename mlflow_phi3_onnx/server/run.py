"""A server process: models loaded, a socket, and an end without haste."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import socket
import ssl
import sys
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import uvicorn

from mlflow_phi3_onnx.core.files import show_path
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.server.app import make_app
from mlflow_phi3_onnx.server.auth import read_keys
from mlflow_phi3_onnx.server.connection import HTTPConnection
from mlflow_phi3_onnx.server.door import Door
from mlflow_phi3_onnx.server.logs import set_up_logs
from mlflow_phi3_onnx.server.models import Registry
from mlflow_phi3_onnx.tracing.serving import set_up, written_in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from types import FrameType

    from mlflow_phi3_onnx.server.settings import ServerSettings

__all__ = ["Server", "make_server", "serve"]

_logger = logging.getLogger(__name__)

_SWITCH_INTERVAL = 0.0005
"""Seconds that a thread keeps the interpreter's lock while another waits; 0.005 otherwise."""

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
"""The names of this machine that a request may ask for, where it needs no key."""

_LAST_WORDS = 5
"""Seconds that responses have to be sent once everything that ran was cancelled, and traces to be
written."""


class Server(uvicorn.Server):
    """A web server that ends without haste: it takes nothing new, and finishes what it is at.

    Args:
        config: The web server's configuration.
        door: What the routes share.
    """

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self.door = door

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.servers[0].sockets[0].getsockname()[:2]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second."""
        if self.door.draining or not self.started:
            super().handle_exit(sig, frame)
        self.door.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Look whether it is time to end, which the web server does ten times a second."""
        if self.door.draining:
            await self._drain()
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        """Let what runs finish within the grace period."""
        door = self.door
        _logger.info("Draining: %d requests are running.", door.working)
        end = time.monotonic() + door.settings.grace_period
        while door.working and time.monotonic() < end and not self.should_exit:
            await asyncio.sleep(0.02)
        if door.working:
            _logger.warning("%d requests are cancelled: the grace period is over.", door.working)
            door.ending.set_result(None)
        self.should_exit = True


def make_server(places: Mapping[str, str | None], settings: ServerSettings) -> Server:
    """Read the keys, load the models and make a server of them, which does not listen yet.

    Raises:
        mlflow.exceptions.MlflowException: If a model cannot be loaded, or a file cannot be read.
    """
    keys = read_keys(settings.api_key_file)
    local = _is_loopback(settings.host)
    hosts = settings.allowed_hosts or (THIS_MACHINE if local and not keys else ())
    for name in ("tls_cert", "tls_key"):
        _check_readable(name, getattr(settings, name))
    if settings.tls_cert and settings.tls_key:
        _check_tls(settings.tls_cert, settings.tls_key)
    if not keys and not local:
        _logger.warning(
            "The server listens on %s without a key: whoever reaches this machine may use it. Set"
            " api_key_file.",
            settings.host,
        )
    if settings.trace:
        set_up("trace")
    registry = Registry(places, settings)
    registry.open()
    door = Door(registry, settings)
    config = uvicorn.Config(
        make_app(door, keys, hosts),
        host=settings.host,
        port=settings.port,
        http=HTTPConnection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Longer than clients keep a connection, which would else be closed as they use it again.
        timeout_keep_alive=settings.receive_timeout,  # type: ignore[arg-type] - a number of seconds
        timeout_graceful_shutdown=_LAST_WORDS,
        # Above the gate's own limit, which answers with more words.
        h11_max_incomplete_event_size=settings.max_header_bytes + 4096,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    config.headers_timeout = settings.receive_timeout  # type: ignore[attr-defined] - for HTTPConnection
    config.max_connections = settings.max_connections  # type: ignore[attr-defined] - for HTTPConnection
    return Server(config, door)


def serve(
    places: Mapping[str, str | None],
    settings: ServerSettings,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve models until a signal ends it.

    Args:
        places: Where each model is, by its id; None is the demo model.
        settings: The server's settings.
        tell: Is told the address of the server's page, once it listens there.

    Raises:
        mlflow.exceptions.MlflowException: If it cannot be started.
    """
    set_up_logs(settings.log_level)
    with _bound(settings) as listener:
        _serve(make_server(places, settings), listener, tell)


@contextmanager
def _bound(settings: ServerSettings) -> Generator[socket.socket]:
    """Take the address before models are loaded; nobody is kept waiting there meanwhile."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        if sys.platform != "win32":  # where it would let two servers have the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Connections inherit it. asyncio sets it only on sockets that were made for TCP by name,
        # and without it, what is sent in two parts waits for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise _no_address(settings) from error
        yield listener


def _no_address(settings: ServerSettings) -> InvalidRequestError:
    return InvalidRequestError(
        f"The server cannot listen on {settings.host}, port {settings.port}: the address is not"
        " this machine's, or the port is taken. Choose another with --port.",
        param="port",
    )


def _serve(server: Server, listener: socket.socket, tell: Callable[[str], None]) -> None:
    settings = server.door.settings
    try:
        listener.listen()
    except OSError as error:  # another server has loaded its models faster
        server.door.models.close()
        raise _no_address(settings) from error
    # What is here stays: else each full collection looks through all of it, and nothing answers.
    gc.collect()
    gc.freeze()
    # A thread that reads a request holds the event loop up for as long as this, again and again.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(served.name for served in server.door.models.served)
    _logger.info("Serving %s at %s://%s:%d/v1", names, scheme, shown, port)
    # A browser cannot go to the address that stands for all of this machine's.
    shown = "localhost" if ipaddress.ip_address(host).is_unspecified else shown
    tell(f"{scheme}://{shown}:{port}/")
    try:
        with written_in_time(_LAST_WORDS) if settings.trace else nullcontext():
            server.run(sockets=[listener])
    finally:
        server.door.models.close()


def _check_readable(name: str, file: str | None) -> None:
    if file is None:
        return
    try:
        with open(file, "rb"):  # noqa: PTH123 - a text that is no path is an error too
            pass
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"{name} cannot be read: {show_path(file)} ({type(error).__name__}).", param=name
        ) from error


def _check_tls(certificate: str, key: str) -> None:
    """Check what the web server would stumble over once models are loaded."""

    def refuse() -> str:
        raise InvalidRequestError(
            "tls_key is encrypted, and nobody is there to give its password. Give a key that is"
            " not.",
            param="tls_key",
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as error:
        raise InvalidRequestError(
            f"tls_cert and tls_key cannot be used ({error.reason or 'no PEM'}). tls_cert must be a"
            " certificate chain in PEM form, and tls_key the private key of its first certificate.",
            param="tls_cert",
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
