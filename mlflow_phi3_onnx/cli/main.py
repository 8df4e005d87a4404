"""The command line, ``mlflow-phi3-onnx``: which commands there are, and how a command fails."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from mlflow_phi3_onnx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

PROGRAM = "mlflow-phi3-onnx"

# Each command is a module of this room, whose configure(parser) adds arguments and sets ``run``.
COMMANDS = {
    "export": "save or register a model, converted if need be",
    "inspect": "tell what a model is and needs",
    "serve": "serve models over HTTP, with OpenAI's API",
    "chat": "talk to a model in the terminal",
    "bench": "test a model or a server under load, and log how it did",
    "demo": "serve the demo model, and open a page to talk to it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command and its options; None for those of the process.

    Returns:
        The exit status: 0, or 1 for an error, which is told on stderr.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(given).parse_args(given)
    from mlflow.exceptions import MlflowException  # the command has loaded MLflow by now

    try:
        options.run(options)
    except MlflowException as error:
        print(f"{PROGRAM}: error: {error.message}", file=sys.stderr)
        return 1
    return 0


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Phi-3 and other models of ONNX Runtime GenAI in MLflow."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about)
        if name in given[:1]:  # importing a command takes seconds
            import_module(f"mlflow_phi3_onnx.cli.{name}").configure(command)
    return parser
