"""The package stays small enough to hold: no module too long, nothing written twice."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import mlflow_phi3_onnx

PACKAGE = Path(mlflow_phi3_onnx.__file__).parent
LONGEST_MODULE = 400
SHARED_LINES = 12


def code_lines(path: Path) -> list[tuple[int, str]]:
    """List the lines of code with their numbers: no imports, exports, docstrings or comments."""
    source = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        imported = isinstance(node, ast.Import | ast.ImportFrom)
        if isinstance(node, ast.stmt) and (text or names or imported):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(source.splitlines(), 1))
    return [
        (number, line)
        for number, line in lines
        if number not in skipped and line.strip(")]},") and not line.startswith("#")
    ]


def test_no_module_is_too_long() -> None:
    sizes = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")}
    long = [f"{path.relative_to(PACKAGE)}: {n}" for path, n in sizes.items() if n > LONGEST_MODULE]
    assert not long


def test_no_two_places_share_a_dozen_lines() -> None:
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = code_lines(path)
        for start in range(len(lines) - SHARED_LINES + 1):
            run = tuple(line for _, line in lines[start : start + SHARED_LINES])
            places[run].append(f"{path.relative_to(PACKAGE)}:{lines[start][0]}")
    assert [where for where in places.values() if len(where) > 1] == []
