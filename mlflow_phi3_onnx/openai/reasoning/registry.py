"""The forms of reasoning that are known, and which one a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.reasoning.harmony import HARMONY
from mlflow_phi3_onnx.openai.reasoning.think import MISTRAL_THINK, THINK

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.reasoning.base import ReasoningFormat
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings

__all__ = ["REASONING_FORMATS", "REASONING_SETTINGS", "choose_reasoning"]

REASONING_FORMATS: dict[str, ReasoningFormat] = {
    known.name: known for known in (HARMONY, MISTRAL_THINK, THINK)
}
"""The forms by name, in the order in which a model is asked for them."""

REASONING_SETTINGS = ("auto", "none", *REASONING_FORMATS)
"""What ``reasoning_format`` in ``model_config`` may be."""


def choose_reasoning(setting: str, model: Markings) -> ReasoningFormat | None:
    """Choose how a model's thoughts are told from its answer.

    Args:
        setting: One of :data:`REASONING_SETTINGS`.
        model: The model's marks.

    Returns:
        The form; None where none is wanted, or with ``auto`` where the model shows none.
    """
    if setting != "auto":
        return REASONING_FORMATS.get(setting)
    return next((known for known in REASONING_FORMATS.values() if known.matches(model)), None)
