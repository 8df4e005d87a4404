"""Which format a model's tool calls have: by its template and control tokens, or as it is set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.formats.registry import FORMATS, SETTINGS, choose_format
from tests.support.tool_cases import closed, parse, tool

ROOT = Path(__file__).parents[2]


def named(setting: str, template: str, *control: str) -> str | None:
    found = choose_format(setting, Markings(template.__contains__, dict.fromkeys(control, 7).get))
    return found.name if found else None


@pytest.mark.parametrize(
    ("template", "control", "name"),
    [
        ("{{ tools }}", ["<|channel|>", "<|message|>", "<|tool_call|>"], "harmony"),
        ("<|channel|>analysis<|message|>", [], "harmony"),
        ("<|message|>", [], None),
        ("{{ tools }}", ["<|tool_call|>"], "phi4_mini"),
        ("'<|tool_call|>[' + call", [], "phi4_mini"),
        ("{{ tools }}", ["<tool_call>"], "hermes"),
        ('<tool_call>{"name": "', [], "hermes"),
        ("<tool_call><function=f><parameter=x>", ["<tool_call>"], "qwen3_coder"),
        ("<tool_call><function=f>", ["<tool_call>"], None),
        ("<tool_call>f<arg_key>", ["<tool_call>"], "glm4"),
        ('functools[{"name"', ["<|tool_call|>", "<|python_tag|>"], "functools"),
        ("<|tool_call>call:", [], "gemma4"),
        ("{{ tools }}", ["<|tool_call>"], "gemma4"),
        ("{{ tools }}", ["<|tool_call_start|>"], "lfm2"),
        ("Write [func_name1(params_name1=params_value1)]. ipython", [], "pythonic"),
        ("Environment: ipython", [], "llama3"),
        ("<function=f>{} ipython", ["<|python_tag|>"], None),
        ("{{ tools }}", ["<|python_tag|>"], "llama3"),
        ("[TOOL_CALLS]", ["[TOOL_CALLS]"], "mistral"),
        ("<seed:tool_call><function=f><parameter=x>", ["<seed:tool_call>"], None),
        ("", [], None),
    ],
)
def test_template_and_control_tokens_tell(
    template: str, control: list[str], name: str | None
) -> None:
    assert named("auto", template, *control) == name
    for setting in SETTINGS[1:]:
        assert named(setting, template, *control) == (None if setting == "none" else setting)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("phi4_mini", '{"name": "f", "arguments": {}}'),
        ("hermes", '{"name": "f", "parameters": {}}'),
        ("hermes", '<|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>'),
        ("llama3", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
    ],
)
def test_what_another_format_calls_a_call_is_text(name: str, other: str) -> None:
    assert parse([other], name) == (other, [])


def test_the_guide_lists_every_format() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| .*\| `(.+)` \|$", guide, re.MULTILINE)
    assert [name for name, _ in listed] == list(FORMATS)
    tools = [tool("f", closed(a={"type": "integer"}))]
    for name, example in listed:
        written = example.replace("⏎", "\n").replace(r"\|", "|")
        assert parse([written], name, tools) == ("", [("f", '{"a": 1}')])
