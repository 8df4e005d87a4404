"""`python -m benchmarks`: measure, print a table, and keep results and a plot in a folder."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measures import MEASURES
from benchmarks.report import REFERENCES, beside, plot, publish, speeds, table
from benchmarks.runner import collect, run
from benchmarks.subject import Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 if a measure failed. A target that is missed is no failure.
    """
    options = _parser().parse_args(arguments)
    scale = Scale(quick=options.quick, repeats=1 if options.quick else options.repeats)
    if options.models:
        scale = Scale(scale.quick, scale.repeats, tuple(options.models))
    today = dt.datetime.now(dt.timezone.utc).date().isoformat()
    folder: Path = options.results or RESULTS / (f"{today}-quick" if options.quick else today)
    names = options.only or list(MEASURES)
    if options.fresh:
        for name in names:
            (folder / f"{name}.json").unlink(missing_ok=True)
    failed = run(names, folder, scale)
    report = collect(folder, "python -m benchmarks")
    print(f"\n{table(report)}\n\n{speeds(report)}\n")
    for name, reference in REFERENCES.items():
        if name in report["measures"]:
            print(f"{beside(report, name, reference)}\n")
    print(folder)
    plot(report, folder / "report.svg")
    for name, code in failed.items():
        print(f"{name} failed, with exit code {code}", file=sys.stderr)
    if options.publish_other:
        publish(report, whole=False)
    if options.publish:
        missing = set(MEASURES) - set(report["measures"])
        if missing or options.quick:
            sys.exit(f"Not published: this run is not whole. Missing: {sorted(missing)}")
        publish(report)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, metavar="MEASURE", help=", ".join(MEASURES)
    )
    parser.add_argument("--repeats", type=int, default=Scale.repeats, help="turns that count")
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help=f"instead of {', '.join(Scale.models)}"
    )
    parser.add_argument("--quick", action="store_true", help="only see that it all runs")
    parser.add_argument(
        "--results", type=Path, help="folder; what is there already is not measured again"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.*")
    parser.add_argument(
        "--publish-other", action="store_true", help="write docs/machines.json, of some measures"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
