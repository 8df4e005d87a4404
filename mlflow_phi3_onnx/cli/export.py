"""``mlflow-phi3-onnx export``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT
from mlflow_phi3_onnx.flavor.functions import log_model, save_model

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["configure"]

# What a logged model's name may not have, while a registered model's may.
_NOT_IN_NAMES = re.compile(r"""[/:.%"']""")


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
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
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
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
