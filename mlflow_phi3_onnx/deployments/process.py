"""Server processes that outlive the command that started them: start, recognise, stop.

This module knows nothing of MLflow, of models or of what a process serves.

A process is recognised by its pid *and* its creation time, so a pid that the system has given to
another process is never taken for ours, and never signalled. Its descendants are found through
the process tree and, once the parent is gone, through a marker that every one of them inherits
in its environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MARKER_VARIABLE = "MLFLOW_PHI3_ONNX_DEPLOYMENT"
"""The environment variable that marks a server process and every process it starts."""

# The system derives a creation time from its boot time, which moves when the clock is corrected.
_CREATE_TIME_TOLERANCE_S = 2.0
_GRACE_S = 10.0
_KILL_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True)
class ProcessId:
    """What makes a process itself, also for another command on another day.

    Attributes:
        pid: The number that the system gave it, and may give to another process later.
        create_time: When it was created, in seconds since the epoch.
    """

    pid: int
    create_time: float


def start(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, marker: str
) -> tuple[ProcessId, subprocess.Popen[bytes]]:
    """Start a process that lives on when this one ends and leaves no zombie when it does not.

    Args:
        command: The program and its arguments. No shell is involved.
        env: The whole environment of the process, but for the marker.
        cwd: The folder it runs in.
        log: The file that its standard output and error are appended to, made with mode 0600.
        marker: A text of its own for this process, by which its descendants are found.

    Raises:
        OSError: The program or the folder cannot be used, or the log cannot be written.
    """
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as output:
        popen = subprocess.Popen(  # noqa: S603 - an argument list that the caller has checked
            list(command),
            env={**env, MARKER_VARIABLE: marker},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=flags,
        )
    # Asked before the thread below can reap it: a process that died at once still has its time.
    created = psutil.Process(popen.pid).create_time()
    threading.Thread(target=popen.wait, name=f"reap-{popen.pid}", daemon=True).start()
    return ProcessId(popen.pid, created), popen


def is_running(process: ProcessId) -> bool:
    """Whether this very process still runs: a zombie does not, nor does its pid's next owner."""
    found = _find(process)
    return found is not None and _runs(found)


def is_listening(process: ProcessId, marker: str, port: int) -> bool:
    """Whether the process or a descendant of it is the one that listens on a TCP port.

    Where the system does not let us look, the answer is True: the caller has other evidence.
    """
    for member in _members(process, marker):
        try:
            connections = member.net_connections(kind="inet")
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            continue
        if any(
            connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port
            for connection in connections
        ):
            return True
    return False


def stop(process: ProcessId, marker: str, grace: float = _GRACE_S) -> list[int]:
    """Stop the process and all its descendants: ask, wait for the seconds of grace, then kill.

    Nothing is signalled when the pid belongs to another process by now.

    Returns:
        The pids that still run because the system does not let us stop them; normally none.
    """
    # More than one round of asking, because a process may start another while it is asked.
    for send, patience in (
        (psutil.Process.terminate, grace),
        (psutil.Process.kill, _KILL_S),
        (psutil.Process.kill, _KILL_S),
    ):
        members = _members(process, marker)
        if not members:
            return []
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                send(member)
        _wait(members, patience)
    return sorted(member.pid for member in _members(process, marker))


def _find(process: ProcessId) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        if abs(found.create_time() - process.create_time) <= _CREATE_TIME_TOLERANCE_S:
            return found
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _members(process: ProcessId, marker: str) -> list[psutil.Process]:
    leader = _find(process)
    # A system never reuses a pid while its session has members, so a stranger's pid means that
    # all of ours have ended.
    if leader is None and psutil.pid_exists(process.pid):
        return []
    members = {other for other in psutil.process_iter() if _marked(other, marker)}
    if leader is not None:
        members.add(leader)
        with contextlib.suppress(psutil.NoSuchProcess):
            members.update(leader.children(recursive=True))
    return [member for member in members if _runs(member)]


def _marked(process: psutil.Process, marker: str) -> bool:
    try:
        return process.environ().get(MARKER_VARIABLE) == marker
    except (psutil.Error, OSError):
        return False  # another user's, or gone


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    # Not psutil.wait_procs: to psutil 6 a zombie still runs, and in a container it may stay one.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_runs(process) for process in processes):
        time.sleep(_POLL_S)
