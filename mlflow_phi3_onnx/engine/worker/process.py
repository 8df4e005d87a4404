"""The processes that engines run in: how they are started, found, and told how they ended.

They are started by ``subprocess`` and import only what they are told to, so that a user's main
module does not run again, as it would with ``multiprocessing``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.engine.worker.connection import Connection
from mlflow_phi3_onnx.errors import EngineDeadError, InvalidRequestError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["OwnWorker", "SharedWorker", "is_same_user", "lent_socket", "locked", "remove_own"]

_BOOT = """
import json, sys
given = json.loads(sys.stdin.buffer.read())
sys.path[:] = given["sys_path"]
from mlflow_phi3_onnx.engine.worker.boot import main
main(given)
"""

_LAST_WORDS_S = 10
"""Seconds that a worker may take to end after it has closed its connection."""


class OwnWorker:
    """A worker of this process alone: it ends when this process does, or the thread that made it.

    Args:
        entry: The module whose ``main`` runs the engine.
        recipe: What is passed to it, as JSON.

    Raises:
        EngineDeadError: If the system starts no process.
    """

    def __init__(self, entry: str, recipe: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = _start(entry, recipe, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.connection = Connection(ours)

    def stop(self) -> None:
        """End it at once. It has nothing to save."""
        self.connection.close()
        self._process.kill()

    def kill(self, pid: int) -> None:  # noqa: ARG002 - of a shared worker
        """End it."""
        self.stop()

    def ended(self) -> str:
        """Wait until it has ended, after its connection has, and tell how."""
        self.connection.free()
        try:
            code = self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def disown(self) -> None:
        """Forget it, in a forked process."""
        self.connection.disown()
        self._process.returncode = 0  # it is the parent's, and not to be waited for here


class SharedWorker:
    """A worker of all processes that ask for the same: the first starts it, the last ends it.

    Args:
        entry: The module whose ``main`` runs the engine.
        recipe: What is passed to it, as JSON.
        key: What names it: a worker with the same key is the same.

    Raises:
        EngineDeadError: If the system starts no process.
        InvalidRequestError: If the system has no Unix sockets, or no private folder for one.
    """

    def __init__(self, entry: str, recipe: Mapping[str, Any], key: str) -> None:
        if sys.platform == "win32":
            raise InvalidRequestError(
                "isolation='shared' needs Unix sockets, which Windows has not. Use 'worker'.",
                param="isolation",
            )
        folder = _private_folder()
        path = folder / f"{key}.sock"
        ours = socket.socket(socket.AF_UNIX)
        try:
            with locked(folder / "lock"):
                if not _connects(ours, path):
                    _start_listening(entry, recipe, path)
                    ours.connect(str(path))
                self._own = path.stat().st_ino if path.exists() else 0
            if not is_same_user(ours):
                raise EngineDeadError(f"The socket {path} is another user's. Remove it.")
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise _no_socket(path, error) from error
            raise
        self.connection = Connection(ours)
        self._path = path

    def stop(self) -> None:
        """Leave it."""
        self.connection.close()

    def kill(self, pid: int) -> None:
        """End it, for all that use it."""
        # Nobody is to be connected with it while it dies. It may hold the folder's lock.
        with contextlib.suppress(OSError):
            remove_own(self._path, self._own)
        with contextlib.suppress(ProcessLookupError):  # another was faster
            os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        self.connection.close()

    def ended(self) -> str:
        """Tell how it ended, which only its starter could."""
        self.connection.free()
        return "its connection has ended"

    def disown(self) -> None:
        """Forget it, in a forked process."""
        self.connection.disown()


def lent_socket(lent: int | str) -> socket.socket:
    """Return the socket that a worker was given by the process that started it."""
    if sys.platform == "win32":
        return socket.fromshare(base64.b64decode(str(lent)))
    return socket.socket(fileno=int(lent))


def is_same_user(connected: socket.socket) -> bool:
    """Whether the process at the other end is this user's, where the system tells.

    Elsewhere it is the folder of the socket, which only this user can enter, that keeps others out.
    """
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        told = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return struct.unpack("3i", told)[1] == os.getuid()
    return True


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock file, against other processes and threads."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if sys.platform != "win32":
            # A process that was forked meanwhile holds the same lock, until it is taken back.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def remove_own(path: Path, own: int) -> None:
    """Remove a worker's socket, unless another worker's is there by now.

    Args:
        path: Where it was.
        own: Its inode.

    Raises:
        OSError: If nothing is there.
    """
    if path.stat().st_ino == own:
        path.unlink()


def _start(
    entry: str, recipe: Mapping[str, Any], lent: socket.socket, listen: str | None = None
) -> subprocess.Popen[bytes]:
    # Nobody may wait for the end of what a shared worker writes: it can outlive its starter.
    shown = 2 if listen is None else subprocess.DEVNULL
    try:
        process = subprocess.Popen(  # noqa: S603 - this interpreter
            [sys.executable, "-I", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=shown,
            stderr=shown,
            pass_fds=() if sys.platform == "win32" else (lent.fileno(),),
        )
    except OSError as error:
        raise EngineDeadError(
            f"The engine's worker process cannot be started: {error.strerror}."
        ) from error
    given: dict[str, Any] = {
        **recipe,
        "entry": entry,
        "listen": listen,
        "parent": os.getpid(),
        "sys_path": [str(Path(place).absolute()) for place in sys.path],
    }
    if sys.platform == "win32":
        given["socket"] = base64.b64encode(lent.share(process.pid)).decode()
    else:
        given["socket"] = lent.fileno()
    assert process.stdin is not None
    # Where it has ended already, its connection tells.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(given).encode())
    return process


def _start_listening(entry: str, recipe: Mapping[str, Any], path: Path) -> None:
    """Start a worker that listens at a path, at which connections wait until it takes them."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(128)
        _start(entry, recipe, listener, str(path)).wait()


def _connects(ours: socket.socket, path: Path) -> bool:
    try:
        ours.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _private_folder() -> Path:
    """Return a folder for sockets that only this user can enter."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"mlflow-phi3-onnx-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise _no_socket(folder, error) from error
    if facts.st_uid != os.getuid() or facts.st_mode & 0o170077 != 0o040000:
        raise InvalidRequestError(
            f"isolation='shared' needs the folder {folder}, which others can enter or which is no"
            " folder. Remove it, or set TMPDIR to a folder of your own.",
            param="isolation",
        )
    return folder


def _no_socket(path: Path, error: OSError) -> InvalidRequestError:
    return InvalidRequestError(
        f"isolation='shared' cannot use the socket {path}: {error.strerror or error}. TMPDIR names"
        " another folder.",
        param="isolation",
    )
