"""``mlflow-phi3-onnx bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.cli.flags import add_flags, given_flags
from mlflow_phi3_onnx.errors import GenerationError
from mlflow_phi3_onnx.evaluation.load.plan import OPTIONS, Plan
from mlflow_phi3_onnx.evaluation.load.report import table
from mlflow_phi3_onnx.evaluation.load.run import run_load_test
from mlflow_phi3_onnx.evaluation.load.tracking import (
    check_folder,
    check_tracking,
    log_load_test,
    write_files,
)

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["configure"]


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Test a model under load, and log the test as a run of MLflow: throughput, and the"
        " latencies TTFT, TPOT, ITL and E2E. Prompts are random words; completions are greedy and"
        " as long as asked for. The exit status is 1 where a request failed."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a models:/ or runs:/ URI, a saved model, a model folder, or a server's OpenAI base"
        " URL; by default the demo model",
    )
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        help="a second model, of mlflow.transformers too, or URL, which takes turns with the first"
        " one; ratios are those of the first to the second",
    )
    parser.add_argument("--output", metavar="FOLDER", help="write the results there too")
    parser.add_argument("--no-log", action="store_true", help="log no run")
    add_flags(parser, OPTIONS)
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
    plan = Plan.check(given_flags(options, OPTIONS))
    folder = None if options.output is None else Path(options.output)
    if folder is not None:
        check_folder(folder)
    if not options.no_log:
        check_tracking()
    test = run_load_test(options.model, options.compare, plan)
    print(table(test))
    try:
        if folder is not None:
            write_files(test, folder)
    finally:  # what was measured is kept where it can be
        if not options.no_log:
            print(f"Logged as run {log_load_test(test)}.")
    if idle := test.idle:
        raise GenerationError(
            f"No request was sent in the loads {', '.join(idle)}. Give them more seconds, or a"
            " higher rate."
        )
    if failures := sum(test.failures.values()):
        raise GenerationError(f"{failures:,} of {test.requests:,} requests failed.")
