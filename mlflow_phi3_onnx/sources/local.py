"""Folders on this machine."""

from __future__ import annotations

from pathlib import Path

from mlflow_phi3_onnx.core.files import list_visible
from mlflow_phi3_onnx.sources.layout import CARD

__all__ = ["existing", "list_cards", "list_files"]

_DEPTH = 4
"""How many folders deep a model is looked for: a path such as a home folder holds very many."""


def existing(path: str | Path) -> Path | None:
    """Return a path where there is something, else None; some texts can be no path at all."""
    try:
        return Path(path) if path and Path(path).exists() else None
    except (OSError, ValueError):
        return None


def list_cards(folder: Path) -> dict[str, Path]:
    """Find the licence and the card of a model at the top of a folder, by name."""
    return {path.name: path for path in sorted(folder.glob("*")) if CARD.fullmatch(path.name)}


def list_files(folder: Path) -> list[str]:
    """List a folder's files, relative and with slashes, without what is hidden or lies deep."""
    return list_visible(folder, _DEPTH)
