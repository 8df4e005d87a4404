"""``mlflow-phi3-onnx demo``."""

from __future__ import annotations

import logging
import threading
import webbrowser
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.cli.flags import add_flags, given_flags
from mlflow_phi3_onnx.server.models import places
from mlflow_phi3_onnx.server.run import serve
from mlflow_phi3_onnx.server.settings import OPTIONS, ServerSettings

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["configure"]

ADDRESS = {name: OPTIONS[name] for name in ("host", "port")}

_logger = logging.getLogger(__name__)


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Serve the demo model, and open the server's page in the browser: serve, without its"
        " other options."
    )
    parser.add_argument("--no-browser", action="store_true", help="only tell where the page is")
    add_flags(parser, ADDRESS)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
    settings = ServerSettings.check(given_flags(options, ADDRESS))

    def show(url: str) -> None:
        _logger.info("The page is at %s", url)
        if not options.no_browser:  # a browser of the terminal would hold the server
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    serve(places(None, None, ()), settings, show)
