"""Settings that belong together."""

from __future__ import annotations

import pytest

from mlflow_phi3_onnx import InvalidRequestError
from mlflow_phi3_onnx.model.settings import Settings


@pytest.mark.parametrize(
    ("tools", "reasoning", "settled"),
    [
        ("auto", "auto", ("auto", "auto")),
        ("hermes", "think", ("hermes", "think")),
        ("none", "auto", ("none", "auto")),
        ("harmony", "harmony", ("harmony", "harmony")),
        ("auto", "harmony", ("harmony", "harmony")),
        ("harmony", "auto", ("harmony", "harmony")),
    ],
)
def test_harmony_is_one_form_of_calls_and_of_reasoning(
    tools: str, reasoning: str, settled: tuple[str, str]
) -> None:
    config = {"tool_format": tools, "reasoning_format": reasoning}
    settings = Settings.check(config, "llm/v1/chat")
    assert (settings.tool_format, settings.reasoning_format) == settled


@pytest.mark.parametrize(
    ("tools", "reasoning", "param"),
    [
        ("hermes", "harmony", "tool_format"),
        ("none", "harmony", "tool_format"),
        ("harmony", "think", "reasoning_format"),
        ("harmony", "none", "reasoning_format"),
    ],
)
def test_harmony_beside_another_form_is_refused(tools: str, reasoning: str, param: str) -> None:
    config = {"tool_format": tools, "reasoning_format": reasoning}
    with pytest.raises(InvalidRequestError, match=f"Leave {param} out") as caught:
        Settings.check(config, "llm/v1/chat")
    assert caught.value.param == param
