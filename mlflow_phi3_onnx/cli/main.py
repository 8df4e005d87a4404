"""The command line: ``mlflow-phi3-onnx``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.flavor.functions import log_model, save_model
from mlflow_phi3_onnx.flavor.inspect import inspect_model, render
from mlflow_phi3_onnx.model.settings import VERIFY_LEVELS
from mlflow_phi3_onnx.openai.parameters import ALL_TASKS, CHAT

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

PROGRAM = "mlflow-phi3-onnx"

# What a logged model's name may not have, while a registered model's may.
_NOT_IN_NAMES = re.compile(r"""[/:.%"']""")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command and its options; None for those of the process.

    Returns:
        The exit status: 0, or 1 for an error, which is told on stderr.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MlflowException as error:
        print(f"{PROGRAM}: error: {error.message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Phi-3 and other models of ONNX Runtime GenAI in MLflow."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_export(
        commands.add_parser("export", help="save or register a model, converted if need be")
    )
    _add_inspect(commands.add_parser("inspect", help="tell what a model is and needs"))
    return parser


def _add_inspect(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    report = inspect_model(options.source, verify=options.verify)
    print(json.dumps(report, indent=2) if options.json else render(report))


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Save a model in MLflow's format, or register it. One of PyTorch's is converted, which"
        " needs the export extra. MLflow's environment variables, such as MLFLOW_TRACKING_URI, say"
        " where it is registered."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, the id of a repository on the Hugging Face hub, a models:/ or runs:/ URI",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", metavar="DIR", help="the folder to save to")
    target.add_argument("--register", metavar="NAME", help="the name to register a version under")
    parser.add_argument(
        "--task", default=CHAT, help=f"{', '.join(ALL_TASKS)}; by default %(default)s"
    )
    parser.add_argument(
        "--by-reference",
        action="store_true",
        help="save where the repository's files are, and not the files",
    )
    parser.add_argument("--subfolder", help="the folder inside SOURCE that holds the model")
    parser.add_argument("--revision", help="a branch, tag or commit hash of the repository")
    parser.add_argument("--precision", help="int4 (the default), int8, fp16 or fp32")
    parser.add_argument("--block-size", type=int, help="how many weights share a scale")
    parser.add_argument("--algorithm", help="how weights are quantized")
    parser.add_argument("--execution-provider", help="cpu (the default), cuda or dml")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    names = ("block_size", "algorithm", "execution_provider")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    arguments: dict[str, Any] = {
        "task": options.task,
        "subfolder": options.subfolder,
        "revision": options.revision,
        "precision": options.precision,
        "export_options": chosen or None,
        "save_pretrained": not options.by_reference,
    }
    if options.output is not None:
        save_model(options.source, options.output, **arguments)
        print(f"Saved to {options.output}.")
        return
    name = _NOT_IN_NAMES.sub("-", options.register)
    info = log_model(options.source, name=name, registered_model_name=options.register, **arguments)
    print(f"Registered as models:/{options.register}/{info.registered_model_version}.")


if __name__ == "__main__":
    sys.exit(main())
