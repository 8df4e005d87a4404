"""What a worker process does before it imports anything that takes long.

Of MLflow, a worker needs the class of its errors. But importing any part of it runs MLflow's own
``__init__``, which brings all of it along, and pandas: 1.2 s and 130 MB for each process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import types
from contextlib import suppress
from typing import Any

__all__ = ["import_errors", "main"]


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
    import_errors()
    importlib.import_module(given["entry"]).main(given)


def import_errors(package: str = "mlflow") -> None:
    """Import MLflow's errors with a stand-in for MLflow itself; where that fails, with all of it.

    Args:
        package: Where they are.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return
    stand_in = types.ModuleType(package)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = stand_in
    with suppress(Exception):
        importlib.import_module(f"{package}.exceptions")
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
