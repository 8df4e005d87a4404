"""A load test as a table, as JSON, and as a plot of throughput against latency."""

from __future__ import annotations

import datetime as dt
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_phi3_onnx._version import __version__
from mlflow_phi3_onnx.evaluation.load.exchange import LATENCIES
from mlflow_phi3_onnx.runtime.machine import available_threads

if TYPE_CHECKING:
    from mlflow_phi3_onnx.evaluation.load.exchange import Spread, Summary
    from mlflow_phi3_onnx.evaluation.load.run import LoadTest, Measured

__all__ = ["SCHEMA", "as_json", "plot", "table"]

SCHEMA = 1
"""The version of the form of ``results.json``."""

_COLORS = ("#2a6fbb", "#c8553d")
_PANELS = {"ttft_ms": "time to first token", "tpot_ms": "time per output token"}


def as_json(test: LoadTest) -> dict[str, Any]:
    """Return everything that was measured as JSON; no prompt and no completion is in it."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "threads": available_threads()},
        "plan": asdict(test.plan),
        "sides": {n: {"label": one.label, "notes": one.notes} for n, one in test.sides.items()},
        "loads": [_load(test, one) for one in test.measured],
    }


def _load(test: LoadTest, one: Measured) -> dict[str, Any]:
    return {
        **one.point.as_json(),
        "sides": {
            side: {
                "all_rounds": one.summary(side).as_json(),
                "rounds": [
                    {**summary.as_json(), "each_request": [x.as_json() for x in exchanges]}
                    for summary, exchanges in zip(one.by_round(side), one.rounds[side], strict=True)
                ],
            }
            for side in test.sides
        },
        "ratios": {name: ratio.as_json() for name, ratio in one.ratios().items()},
    }


def table(test: LoadTest) -> str:
    """Return the figures as text: loads and sides, ratios, failures, and what else to know."""
    rows = [
        {
            "load": one.point.load,
            "prompt+completion": one.point.lengths,
            "side": side,
            **_cells(one.summary(side)),
        }
        for one in test.measured
        for side in test.sides
    ]
    lines = [f"{name}: {side.label}" for name, side in test.sides.items()]
    lines += ["", pd.DataFrame(rows).to_string(index=False), ""]
    lines.append("Latencies in ms: the median, and the 99th percentile after the stroke.")
    for one in test.measured:
        for name, ratio in one.ratios().items():
            lines.append(
                f"{one.point.load}, {one.point.lengths}: {name} of model / compare"
                f" {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
            )
    failures = ", ".join(f"{kind}: {count}" for kind, count in test.failures.items())
    lines += [f"Failed: {failures}."] if failures else []
    lines += [f"{name}: {note}" for name, side in test.sides.items() for note in side.notes]
    return "\n".join(lines)


def _cells(summary: Summary) -> dict[str, str]:
    goodput = {} if summary.goodput is None else {"goodput/s": f"{summary.goodput:.3g}"}
    shorter = {"shorter": str(summary.short)} if summary.short else {}
    return {
        "requests": str(summary.requests),
        "failed": str(summary.failed),
        **shorter,
        "requests/s": f"{summary.request_throughput:.3g}",
        **goodput,
        "output tokens/s": f"{summary.output_throughput:.4g}",
        **{name.upper(): _both(getattr(summary, f"{name}_ms")) for name in LATENCIES},
    }


def _both(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.p50:.4g} / {spread.p99:.4g}"


def plot(test: LoadTest) -> Any:
    """Draw latencies against throughput: a line for each side and length, a point for each load.

    Returns:
        A figure of matplotlib, which belongs to no window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    groups = list(dict.fromkeys(one.point.lengths for one in test.measured))
    for panel, (name, title) in zip(panels, _PANELS.items(), strict=True):
        for color, side in zip(_COLORS, test.sides, strict=False):
            for number, lengths in enumerate(groups):
                found = [
                    (one.point, summary.output_throughput, getattr(summary, name))
                    for one in test.measured
                    if one.point.lengths == lengths
                    for summary in [one.summary(side)]
                ]
                known = [(p, x, spread) for p, x, spread in found if spread is not None]
                speeds = [speed for _, speed, _ in known]
                style: dict[str, Any] = {"color": color, "alpha": 1 / (1 + number)}
                label = f"{side}, {lengths}"
                panel.plot(speeds, [s.p50 for *_, s in known], "o-", label=label, **style)
                panel.plot(speeds, [s.p99 for *_, s in known], "_:", **style)
                for point, speed, spread in known:
                    panel.annotate(
                        point.load, (speed, spread.p50), xytext=(4, 4), textcoords="offset points"
                    )
        panel.set(title=title, xlabel="output tokens/s", ylabel="ms; p99 dotted")
        panel.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    figure.suptitle("\n".join(f"{name}: {side.label}" for name, side in test.sides.items()))
    return figure
