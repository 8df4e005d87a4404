"""How a model writes tool calls, chosen once when it is loaded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.openai.tools.formats import Markings, choose_format

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.formats import ToolFormat
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

__all__ = ["tool_format_of"]

_logger = logging.getLogger(__name__)


def tool_format_of(tokenizer: PromptTokenizer, setting: str) -> ToolFormat | None:
    """Choose a model's tool format, and say so in the log where its template has one unknown.

    Args:
        tokenizer: The model's tokenizer and template.
        setting: ``tool_format`` of the model's configuration.
    """
    markings = Markings(tokenizer.template_shows, tokenizer.control_id)
    found = choose_format(setting, markings)
    if found is None and setting == "auto" and tokenizer.template_shows("tools"):
        _logger.warning(
            "The chat template shows tools, but the form in which this model writes calls is not"
            " known: what it writes stays text, and calls cannot be required. Set tool_format in"
            " model_config if you know it."
        )
    return found
