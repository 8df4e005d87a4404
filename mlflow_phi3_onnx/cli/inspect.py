"""``mlflow-phi3-onnx inspect``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.flavor.inspect import inspect_model, render
from mlflow_phi3_onnx.model.settings import VERIFY_LEVELS

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["configure"]


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Check a model as loading it would, and tell what is in it, its limits, its memory needs,"
        " and which known defects are repaired when it is loaded. The exit status is 1 where it is"
        " broken."
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a model folder, a saved model, a models:/ or runs:/ URI"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument(
        "--verify",
        choices=VERIFY_LEVELS,
        default="size",
        help="how a saved model's files are checked; by default %(default)s",
    )
    parser.add_argument(
        "--load",
        action="store_true",
        help="load the model too, and tell which loop loop='auto' takes on this machine, and why",
    )
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
    report = inspect_model(options.source, verify=options.verify, load=options.load)
    print(json.dumps(report, indent=2) if options.json else render(report))
