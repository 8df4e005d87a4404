"""One end of a socket that carries messages, each a line of JSON; sending never waits."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Connection"]

_CHUNK = 1 << 18
# Windows has no such flag: there, a thread sends everything.
_AT_ONCE: int | None = getattr(socket, "MSG_DONTWAIT", None)

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Connection:
    """One end of a connected socket.

    Any thread may send; one thread reads. What the system does not take at once is sent by a
    thread of its own.

    Args:
        sock: The socket.
        most_unread: Bytes of messages that the other end leaves unread, beyond which it is cut off
            at the next; None keeps all of them.
    """

    def __init__(self, sock: socket.socket, most_unread: int | None = None) -> None:
        self._socket = sock
        self._most_unread = most_unread
        self._lock = threading.Lock()
        self._unsent: list[bytes] = []
        self._size = 0
        self._sending = False
        self._cut = False

    def add(self, *message: Any) -> bool:
        """Put a message behind those that are to be sent, and tell whether the other end lives."""
        line = _encode(message).encode() + b"\n"
        with self._lock:
            if self._most_unread is not None and self._size > self._most_unread:
                self._cut_off()
            if self._cut:
                return False
            self._unsent.append(line)
            self._size += len(line)
        return True

    def flush(self) -> None:
        """Send what was added, without waiting for the other end."""
        if not self._unsent:
            return
        with self._lock:
            if self._sending or self._cut or not self._unsent:
                return
            rest = self._send_at_once(b"".join(self._unsent))
            self._unsent = [rest] if rest else []
            self._size = len(rest)
            if not rest:
                return
            self._sending = True
        threading.Thread(target=self._send_rest, name="onnx-genai-send", daemon=True).start()

    def send(self, *message: Any) -> bool:
        """Add a message and send it."""
        taken = self.add(*message)
        self.flush()
        return taken

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the messages that arrive, until the other end is closed."""
        parts: list[bytes] = []
        while data := self._receive():
            lines, newline, rest = data.rpartition(b"\n")
            if newline:
                for line in b"".join([*parts, lines]).split(b"\n"):
                    yield json.loads(line)
                parts.clear()
            parts.append(rest)

    def close(self) -> None:
        """End both directions; may be called again, and while others send and read."""
        with self._lock:
            self._cut_off()

    def free(self) -> None:
        """Give the socket back to the system; nothing else may be called any more."""
        self._socket.close()

    def disown(self) -> None:
        """Close the socket in a forked process, which leaves its parent's open."""
        os.close(self._socket.detach())

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_CHUNK)
        except OSError:
            return b""

    def _send_at_once(self, data: bytes) -> bytes:
        """Send what the system takes now, and return the rest."""
        if _AT_ONCE is None:
            return data
        try:
            return data[self._socket.send(data, _AT_ONCE) :]
        except BlockingIOError:
            return data
        except OSError:
            self._cut_off()
            return b""

    def _send_rest(self) -> None:
        while True:
            with self._lock:
                data = b"".join(self._unsent)
                self._unsent = []
                if not data or self._cut:
                    self._sending = False
                    return
            try:
                self._socket.sendall(data)
            except OSError:
                self.close()
            with self._lock:
                self._size -= len(data)

    def _cut_off(self) -> None:
        self._cut = True
        self._unsent, self._size = [], 0
        with contextlib.suppress(OSError):  # the other end, or this one, was faster
            self._socket.shutdown(socket.SHUT_RDWR)
