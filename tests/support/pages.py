"""The documentation's pages: what is in them, and which of them are run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

__all__ = [
    "BLOCK",
    "PAGES",
    "PROGRAMS",
    "README",
    "ROOT",
    "at_a_terminal",
    "blocks",
    "without_registry",
]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# The pages whose Python is run: from top to bottom, as a program and as the cells of a notebook.
PROGRAMS = (
    *("README.md", "docs/guide.md", "docs/comparison.md", "docs/evaluation.md"),
    "docs/serving.md",
    "docs/tracing.md",
)


def blocks(language: str, page: str = README) -> list[str]:
    """List a page's blocks of a language."""
    return [body for kind, body in BLOCK.findall(page) if kind == language]


def at_a_terminal() -> dict[str, str]:
    """Return an environment in which commands are found by name, with a store of their folder's."""
    return {
        **without_registry(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
    }


def without_registry() -> dict[str, str]:
    """Return this process's environment, without the registry that MLflow sets in it."""
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_REGISTRY_URI"}
