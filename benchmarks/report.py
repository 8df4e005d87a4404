"""The results as a table, a plot, and the page of the documentation.

    python -m benchmarks.report

writes pages of the documentation anew from `docs/performance.json`, and from `docs/machines.json`,
which holds some measures of another machine: what stands between marks.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import TARGETS
from mlflow_phi3_onnx.evaluation.load.turns import paired

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "PAGES",
    "REFERENCES",
    "beside",
    "line",
    "page",
    "plot",
    "publish",
    "rows",
    "speeds",
    "table",
]

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("performance.md", "sources.md", "machines.md")
DATA, OTHER, PICTURE = "performance.json", "machines.json", "performance.svg"
MARKED = re.compile(r"(<!-- (\w+): made from (\w+\.json) -->\n).*?(\n<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet."
_DONE = {
    "prefill": "prompt of {}",
    "decode": "decoding, {} together",
    "tokens/s": "tokens/s, clients: {}",
    "first": "first token, clients: {}",
}
REFERENCES = {"llama": "llama.cpp, Q4_0", "servers": "this package"}
"""Measures of several programs, and the one that ratios are to."""

# What a reader wants to know first, and the target whose figures say it.
EXPECTED = {
    "one request: time, against onnxruntime-genai's own loop": "predict",
    "decoding: tokens per second, against `mlflow.transformers` in bf16": "transformers",
    "32 rows of a data frame: tokens per second, against one at a time": "frame-defaults",
    "8 clients of a server: tokens per second, against 1 client": "clients",
    "a short request beside a long completion: first token, against alone": "late-arrival",
    "the next turn of a conversation: first token, against a new prompt": "second-turn",
    "`/ping` of a server during a prefill of 2,000 tokens, 99th percentile": "ping",
}


def rows(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the rows of all measures, in the order of the targets."""
    found = [row for measure in report["measures"].values() for row in measure["rows"]]
    for target in TARGETS:
        yield from (row for row in found if row.get("target") == target)


def line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of text."""
    if row.get("kind") == "converted":
        return _converted(row)
    if row.get("kind") == "rounding":
        form = f"{row['precision']}, {row['algorithm']}, blocks of {row['block_size']}"
        return f"{form}: {_number(row['error'])}"
    if row.get("kind") == "compared":
        medians = {what: statistics.median(found) for what, found in row["samples"].items()}
        return f"{row['program']}: {', '.join(f'{w} {_number(m)}' for w, m in medians.items())}"
    if "target" not in row:
        decode = ", ".join(f"{_number(speed)} at {rows}" for rows, speed in row["decode"].items())
        return f"{row['model']}: prompts {_number(row['prefill'])} tokens/s, decoding {decode}"
    sides = ", ".join(f"{row[side]['name']} {_side(row[side])}" for side in ("ours", "reference"))
    verdict = "met" if row["met"] else "missed"
    return f"{row['target']}, {row['variant']}: {sides}: {_figure(row)}; {_goal(row)}: {verdict}"


def table(report: Mapping[str, Any]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| measure | loop and model | this package | compared with | figure | target | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    before = ""
    for row in rows(report):
        measure = "" if row["measure"] == before else row["measure"]
        before = row["measure"]
        cells = [measure, row["variant"], _cell(row["ours"]), _cell(row["reference"])]
        cells += [_figure(row), _goal(row), "yes" if row["met"] else "**no**"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def expected(report: Mapping[str, Any]) -> str:
    """Return what to expect of each loop and block size, as a table in Markdown."""
    figures = {(row.get("target"), row["variant"]): row["figure"] for row in rows(report)}
    variants = [f"`{loop}`, mid4-int4-b{size}" for size in (32, 128) for loop in ("genai", "slots")]
    names = [name.replace("mid4-int4-b", "blocks of ") for name in variants]
    lines = [f"| | {' | '.join(names)} |", f"| {' | '.join('---' for _ in range(5))} |"]
    for about, target in EXPECTED.items():
        found = [figures.get((target, variant)) for variant in variants]
        cells = ["" if f is None else _amount(f["median"], f["unit"]) for f in found]
        lines.append(f"| {about} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speeds(report: Mapping[str, Any]) -> str:
    """Return what the processor gives, as a table in Markdown."""
    found: list[dict[str, Any]] = report["measures"].get("processor", {"rows": []})["rows"]
    batches = list(found[0]["decode"]) if found else []
    names = ["model", "prompt", *(f"decoding, {rows} together" for rows in batches)]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    for row in found:
        cells = [row["model"], *map(_number, [row["prefill"], *row["decode"].values()])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def beside(report: Mapping[str, Any], measure: str, reference: str) -> str:
    """Return figures of several programs, with the ratio to one of them, as a table.

    Args:
        report: The results.
        measure: The measure.
        reference: What is in the name of the program that ratios are to.
    """
    found: list[dict[str, Any]] = report["measures"].get(measure, {"rows": []})["rows"]
    done = list(found[0]["samples"]) if found else []
    heads = ["program", *(_DONE[what.split()[0]].format(what.split()[1]) for what in done)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    theirs = next((row["samples"] for row in found if reference in row["program"]), {})
    for row in found:
        cells = [row["program"]]
        for what in done:
            ratio = statistics.median(paired(row["samples"][what], theirs[what]))
            cells.append(f"{_number(statistics.median(row['samples'][what]))} ({ratio:.2f}×)")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def conversion(report: Mapping[str, Any]) -> str:
    """Return what a conversion took, in a sentence."""
    return " ".join(_converted(row) for row in _of_conversion(report, "converted"))


def rounding(report: Mapping[str, Any]) -> str:
    """Return what conversions lose, as a table in Markdown."""
    found = _of_conversion(report, "rounding")
    blocks = sorted({row["block_size"] for row in found})
    errors = {(r["precision"], r["algorithm"], r["block_size"]): r["error"] for r in found}
    names = ["precision, algorithm", *(f"blocks of {block}" for block in blocks)]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    for precision, algorithm in dict.fromkeys((r["precision"], r["algorithm"]) for r in found):
        values = [errors.get((precision, algorithm, block)) for block in blocks]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {precision}, `{algorithm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_conversion(report: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    found = report["measures"].get("conversion", {"rows": []})["rows"]
    return [row for row in found if row["kind"] == kind]


def _converted(row: Mapping[str, Any]) -> str:
    return (
        f"{row['parameters'] / 1e6:.0f} M parameters, {row['checkpoint_bytes'] / 1e9:.1f} GB,"
        f" became {row['precision']} in blocks of {row['block_size']},"
        f" {row['model_bytes'] / 1e6:.0f} MB: `log_model` took"
        f" {_number(row['log_model_seconds'])} s and the builder"
        f" {row['builder_bytes'] / 1e9:.1f} GB of memory; loading took"
        f" {_number(row['load_seconds'])} s, and a first completion of {row['answer_tokens']}"
        f" tokens {_number(row['answer_seconds'])} s."
    )


def machine(report: Mapping[str, Any]) -> str:
    """Return what the run ran on, as a list in Markdown."""
    about = report["environment"]
    minutes = sum(measure["seconds"] for measure in report["measures"].values()) / 60
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    instructions = ", ".join(about["instructions"])
    return "\n".join(
        [
            f"- {about['processors']} processors, {about['processor']} ({instructions}),"
            f" {about['memory_gb']:.0f} GB of memory, {about['system']}",
            f"- Python {about['python']}, {packages}",
            f"- this package {about['version']}, commit {about['commit']}",
            f"- `{report['command']}`, on {about['date']}, {minutes:.0f} minutes",
        ]
    )


def page(text: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Fill the marked parts of a page.

    Args:
        text: The page as it is.
        reports: The published results, by the names of their files.
    """
    parts = {name: _parts(report) for name, report in reports.items()}

    def fill(found: re.Match[str]) -> str:
        return found[1] + parts.get(found[3], {}).get(found[2], NOTHING) + found[4]

    return MARKED.sub(fill, text)


def _parts(report: Mapping[str, Any]) -> dict[str, str]:
    parts = {
        "expected": expected(report),
        "table": table(report),
        "speeds": speeds(report),
        "machine": machine(report),
        "plot": f"![How far each figure is from its target]({PICTURE})",
    }
    for measure, reference in REFERENCES.items():
        if measure in report["measures"]:
            parts[measure] = beside(report, measure, reference)
    if "conversion" in report["measures"]:
        parts |= {"conversion": conversion(report), "rounding": rounding(report)}
    return parts


def plot(report: Mapping[str, Any], target: Path) -> None:
    """Draw how far each figure is from its target."""
    from matplotlib.figure import Figure

    lines = list(rows(report))[::-1]
    margins = [_margin(row) for row in lines]
    figure = Figure(figsize=(10, 0.32 * len(lines) + 1.2), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:green" if row["met"] else "tab:red" for row in lines]
    axes.barh(range(len(lines)), [margin - 1 for margin in margins], left=1, color=colors)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    names = [f"{row['target']}, {row['variant']}".replace("`", "") for row in lines]
    axes.set_yticks(range(len(lines)), names)
    for place, (row, margin) in enumerate(zip(lines, margins, strict=True)):
        axes.annotate(
            _amount(row["figure"]["median"], row["figure"]["unit"]),
            (margin, place),
            xytext=(4 if margin >= 1 else -4, 0),
            textcoords="offset points",
            ha="left" if margin >= 1 else "right",
            va="center",
            fontsize="small",
        )
    axes.margins(x=0.15)
    axes.set_xlabel("how many times better than its target a figure is; left of 1 it is missed")
    figure.savefig(target)


def publish(report: Mapping[str, Any], docs: Path = DOCS, *, whole: bool = True) -> None:
    """Make results those of the documentation.

    Args:
        report: The results.
        docs: The documentation's folder.
        whole: Whether they are of all measures, or some of another machine's.
    """
    text = json.dumps(report, indent=1) + "\n"
    (docs / (DATA if whole else OTHER)).write_text(text, encoding="utf-8")
    if whole:
        plot(report, docs / PICTURE)
    rewrite(docs)


def rewrite(docs: Path = DOCS) -> None:
    """Write the pages anew from the published results."""
    for name in PAGES:
        written = docs / name
        text = page(written.read_text(encoding="utf-8"), published(docs))
        written.write_text(text, encoding="utf-8")


def published(docs: Path = DOCS) -> dict[str, dict[str, Any]]:
    """Return the published results, by the names of their files."""
    files = (docs / name for name in (DATA, OTHER))
    return {f.name: json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()}


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _amount(value: float, unit: str) -> str:
    return f"{_number(value)}{'×' if unit == 'x' else ' ' + unit}"


def _side(side: Mapping[str, Any]) -> str:
    if side["unit"] == "s" and side["median"] < 1:
        return _amount(1000 * side["median"], "ms")
    return _amount(side["median"], side["unit"])


def _cell(side: Mapping[str, Any]) -> str:
    return f"{_side(side)} ({side['name']})"


def _figure(row: Mapping[str, Any]) -> str:
    figure = row["figure"]
    text = _amount(figure["median"], figure["unit"])
    if len(figure["samples"]) == 1:
        return text
    return f"{text} ({_number(figure['low'])} to {_number(figure['high'])})"


def _goal(row: Mapping[str, Any]) -> str:
    words = "at most" if row["at_most"] else "at least"
    return f"{words} {_amount(row['limit'], row['figure']['unit'])}"


def _margin(row: Mapping[str, Any]) -> float:
    """How many times better than its target a figure is, from a hundredth to a hundred times."""
    figure, limit = row["figure"]["median"], row["limit"]
    if figure <= 0:
        return 100 if row["at_most"] else 0.01
    return min(max(limit / figure if row["at_most"] else figure / limit, 0.01), 100)


if __name__ == "__main__":
    rewrite()
