"""The server's log: one JSON object a line, none with any text of a request."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from mlflow_phi3_onnx.server.record import Record

__all__ = ["log_failure", "log_request", "set_up_logs"]

_logger = logging.getLogger(__name__)

_PACKAGE = __name__.partition(".")[0]
_ROOT = Path(__file__).parents[1]


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON, without tracebacks, which may hold a caller's text."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        time = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line)


def set_up_logs(level: str, stream: TextIO = sys.stderr) -> None:
    """Write the logs of this package and of the web server to a stream, in this process.

    Args:
        level: The least level of a line, in lower case.
        stream: Where to.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in (_PACKAGE, "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # The server has lines of its own, which say more.
    quiet = logging.DEBUG if level == "debug" else logging.WARNING
    for name in (f"{_PACKAGE}.model.watch", "uvicorn.error"):
        logging.getLogger(name).setLevel(quiet)


def log_request(record: Record, level: int) -> None:
    """Write a request's line."""
    if _logger.isEnabledFor(level):
        _logger.log(level, "request", extra={"request": record.line()})


def log_failure(record: Record, error: BaseException) -> None:
    """Write where in this package an unforeseen error came from, and no text that it may hold."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(_ROOT):
            place = f"{file.relative_to(_ROOT)}:{trace.tb_lineno}"
        trace = trace.tb_next
    _logger.error(
        "The server failed: %s at %s.",
        type(error).__name__,
        place or "an unknown place",
        extra={"request": {"request_id": record.id, "route": record.route}},
    )
