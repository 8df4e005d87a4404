"""The tool formats that are known, and which one a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.tools.formats.hermes import Hermes
from mlflow_phi3_onnx.openai.tools.formats.llama3 import Llama3
from mlflow_phi3_onnx.openai.tools.formats.phi4_mini import Phi4Mini

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolFormat

__all__ = ["FORMATS", "SETTINGS", "choose_format"]

FORMATS: dict[str, ToolFormat] = {f.name: f for f in (Phi4Mini(), Hermes(), Llama3())}
"""The formats by name, in the order in which a model is asked for them."""

SETTINGS = ("auto", "none", *FORMATS)
"""What ``tool_format`` in ``model_config`` may be."""


def choose_format(setting: str, model: Markings) -> ToolFormat | None:
    """Choose how a model's tool calls are read and enforced.

    Args:
        setting: One of :data:`SETTINGS`.
        model: The model's marks.

    Returns:
        The format; None where none is wanted, or with ``auto`` where the model's is not known.
    """
    if setting != "auto":
        return FORMATS.get(setting)
    return next((known for known in FORMATS.values() if known.matches(model)), None)
