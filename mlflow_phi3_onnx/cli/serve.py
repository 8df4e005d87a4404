"""``mlflow-phi3-onnx serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.cli.flags import add_flags, given_flags
from mlflow_phi3_onnx.server.models import places
from mlflow_phi3_onnx.server.run import serve
from mlflow_phi3_onnx.server.settings import OPTIONS, ServerSettings

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["configure"]


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Serve models over HTTP, with OpenAI's API and MLflow's. SIGTERM and Ctrl-C let running"
        " requests finish."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a models:/ or runs:/ URI, a saved model, a model folder; by default the demo model",
    )
    parser.add_argument("--name", help="the model's id; by default made of where it is")
    parser.add_argument(
        "-m",
        dest="others",
        metavar="ID=MODEL",
        action="append",
        default=[],
        help="one more model; may be given several times",
    )
    add_flags(parser, OPTIONS)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
    settings = ServerSettings.check(given_flags(options, OPTIONS))
    serve(places(options.model, options.name, options.others), settings)
