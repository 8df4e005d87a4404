"""The forms of tool calls that are known, and which one a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.tools.formats import (
    functools,
    gemma4,
    glm4,
    harmony,
    hermes,
    llama3,
    mistral,
    phi4_mini,
    pythonic,
    qwen3_coder,
)

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.formats.base import Markings, ToolFormat

__all__ = ["FORMATS", "SETTINGS", "choose_format"]

FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        harmony.FORMAT,
        functools.FORMAT,
        phi4_mini.FORMAT,
        hermes.FORMAT,
        qwen3_coder.FORMAT,
        glm4.FORMAT,
        mistral.FORMAT,
        gemma4.FORMAT,
        pythonic.LFM2,
        pythonic.PYTHONIC,
        llama3.FORMAT,
    )
}
"""The forms by name, in the order in which a model is asked for them."""

SETTINGS = ("auto", "none", *FORMATS)
"""What ``tool_format`` in ``model_config`` may be."""


def choose_format(setting: str, model: Markings) -> ToolFormat | None:
    """Choose how a model's tool calls are read and enforced.

    Args:
        setting: One of :data:`SETTINGS`.
        model: The model's marks.

    Returns:
        The form; None where none is wanted, or with ``auto`` where the model's is not known.
    """
    if setting != "auto":
        return FORMATS.get(setting)
    return next((known for known in FORMATS.values() if known.matches(model)), None)
