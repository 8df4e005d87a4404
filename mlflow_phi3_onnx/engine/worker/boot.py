"""What a worker process does before it imports anything that takes long."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

__all__ = ["main"]


def main(given: dict[str, Any]) -> None:
    """Run a worker's main module. One that is shared leaves its starter, which may end first.

    Args:
        given: What the process that started this one passed to it.
    """
    # What is sent to a whole group of processes is not for this one: its callers say when it is to
    # end. So Ctrl-C stops a completion and not the engine, and a server can finish what is running.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32" and given["listen"] is not None:
        if os.fork():
            os._exit(0)
        os.setsid()
    if hasattr(os, "nice"):  # before libraries start threads, each of which has its own
        os.nice(given.get("niceness", 0))
    importlib.import_module(given["entry"]).main(given)
