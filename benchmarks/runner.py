"""Runs measures, each in a process of its own, and keeps what they find.

A measure that is in the results folder already is not run again, so a run that was interrupted
goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import describe, load_average
from benchmarks.measures import MEASURES
from benchmarks.report import line
from benchmarks.subject import Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["collect", "run"]

REPORT = "report.json"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}


def run(names: Sequence[str], folder: Path, scale: Scale) -> dict[str, int]:
    """Run measures and write each one's result into a folder.

    A quick run stays inside this process: starting others takes longer than it does.

    Args:
        names: Which, in this order.
        folder: Where results go; what is there already is kept.
        scale: How much to measure.

    Returns:
        The exit codes of the measures that failed, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        target = folder / f"{name}.json"
        if target.exists():
            _say(f"[{number}/{len(names)}] {name}: is there already")
            continue
        _say(f"[{number}/{len(names)}] {name}")
        start = time.monotonic()
        if scale.quick:
            measure(name, target, scale)
        else:
            command = [sys.executable, "-m", "benchmarks.runner", name, str(target)]
            plan = json.dumps(asdict(scale))
            environment = {**QUIET, **os.environ}
            done = subprocess.run(command, input=plan, text=True, check=False, env=environment)
            if done.returncode != 0:
                failed[name] = done.returncode
        _say(f"    {time.monotonic() - start:.0f} s")
    return failed


def measure(name: str, target: Path, scale: Scale) -> None:
    """Run one measure here and write its result when it is whole."""
    load, start = load_average(), time.monotonic()
    rows: list[dict[str, Any]] = []
    for row in MEASURES[name](scale):
        rows.append(row.as_json())
        _say(f"    {line(rows[-1])}")
    result = {"seconds": time.monotonic() - start, "load_before": load, "rows": rows}
    new = target.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1), encoding="utf-8")
    new.replace(target)


def collect(folder: Path, command: str) -> dict[str, Any]:
    """Put the results of a folder together, and write them there as one file.

    Args:
        folder: Where the results are.
        command: What was typed.
    """
    measures = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in MEASURES
        if (folder / f"{name}.json").exists()
    }
    report = {"command": command, "environment": describe(), "measures": measures}
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    plan = json.load(sys.stdin)
    plan["models"] = tuple(plan["models"])
    measure(sys.argv[1], Path(sys.argv[2]), Scale(**plan))
