"""``mlflow-phi3-onnx serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.server.models import places
from mlflow_phi3_onnx.server.run import serve
from mlflow_phi3_onnx.server.settings import OPTIONS, ServerSettings

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["configure"]


_VALUES = {"integer": "N", "number": "SECONDS", "object": "JSON"}


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
    for name, option in OPTIONS.items():
        about = f"{option.about} May be {option.check.allowed}; by default"
        about = f"{about} {option.shown_default or 'none'}.".replace("%", "%%")
        flag, kind = f"--{name.replace('_', '-')}", option.check.schema.get("type")
        if kind == "boolean":
            parser.add_argument(flag, dest=name, action="store_const", const=True, help=about)
        else:
            parser.add_argument(
                flag, dest=name, metavar=_VALUES.get(kind or "", name.upper()), help=about
            )
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
    settings = ServerSettings.check({name: getattr(options, name) for name in OPTIONS})
    serve(places(options.model, options.name, options.others), settings)
