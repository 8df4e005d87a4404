"""Every name of the parameter tables that has a check, and a value that is never right for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import anything, string
from mlflow_phi3_onnx.core.tasks import ALL_TASKS
from mlflow_phi3_onnx.openai.parameters import PARAMETERS

if TYPE_CHECKING:
    from mlflow_phi3_onnx.core.options import Option

__all__ = ["NAMES", "NO_BOOLEAN", "wrong"]

NO_BOOLEAN = "no truth value"

NAMES = [
    (task, row)
    for task in ALL_TASKS
    for row in PARAMETERS[task].values()
    # Any text may be an expression, or one that is not used; MLflow passes no metadata on.
    if row.check is not anything and row.name not in ("regex", "grammar", "metadata", "store")
    if row.check is not string or row.status == "refused"
]

# Of the right type, so that MLflow passes it on.
_WRONG: dict[str | None, Any] = {
    "number": -5.5,
    "text": "\x00 no such thing",
    "list of texts": [""],
    "list of integers": [-1],
    None: {"no": ["such", "thing"]},
}


def wrong(row: Option) -> Any:
    """Return a value that is refused."""
    if row.check.type == "true or false":
        return True if row.status == "refused" else NO_BOOLEAN
    return _WRONG[row.check.type]
