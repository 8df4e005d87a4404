"""Changing the documents of a copied folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["edit_json"]


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a JSON file holds, in place."""
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    file.write_text(json.dumps(document), encoding="utf-8")
