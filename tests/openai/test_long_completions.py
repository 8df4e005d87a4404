"""Long completions and hostile ones: reading them costs what their length does, no more."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from mlflow_phi3_onnx.core.request import Completion, EncodedPrompt
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.openai import structured
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.openai.reasoning.registry import REASONING_FORMATS
from mlflow_phi3_onnx.openai.responses import ChatWriter
from mlflow_phi3_onnx.openai.tools.deltas import Reasoning
from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.formats.harmony import MAX_HEADER
from mlflow_phi3_onnx.openai.tools.formats.registry import FORMATS
from mlflow_phi3_onnx.openai.tools.grammar import ToolCallRule, tool_call_grammar
from mlflow_phi3_onnx.openai.tools.literal_reader import json_of_literal
from tests.support.family_cases import TOOLS
from tests.support.tool_cases import closed, parts_of, tool

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.reasoning.base import Reader
    from mlflow_phi3_onnx.openai.tools.deltas import Part

pytestmark = pytest.mark.timeout(60)

LONG = 200_000
ANALYSIS = "<|start|>assistant<|channel|>analysis<|message|>a<|end|>"


def reader(form: str) -> Reader:
    return REASONING_FORMATS[form].reader("free", None)


def read(form: str, text: str, size: int) -> list[Part]:
    reading = reader(form)
    parts = [part for at in range(0, len(text), size) for part in reading.add(text[at : at + size])]
    return [*parts, *reading.finish()]


@pytest.mark.parametrize("size", [4, LONG])
@pytest.mark.parametrize(
    ("form", "before", "piece", "thought", "content"),
    [
        ("think", "<think>a", "\n", "a", ""),
        ("think", "<think>", "\n", "", ""),
        ("think", "<think>", "<think>", "", ""),
        ("think", "", "\n", "", LONG),
        ("harmony", "", "\n", "", LONG),
        ("harmony", "<|channel|>", "a", "", LONG + len("<|channel|>")),
        ("harmony", "", "<|end|>", "", ""),
        ("harmony", "<|channel|>analysis<|message|>a", "<", None, ""),
    ],
)
def test_marks_and_white_space_without_end(
    form: str, before: str, piece: str, thought: str | None, content: str | int, size: int
) -> None:
    parts = read(form, before + piece * (LONG // len(piece)), size)
    if thought is not None:
        assert "".join(p.text for p in parts if isinstance(p, Reasoning)) == thought
    texts = [p for p in parts if isinstance(p, str)]
    assert sum(map(len, texts)) == (content or 0)


def test_a_header_ends_in_time_or_is_text() -> None:
    fits = "<|channel|>final".ljust(MAX_HEADER - len("<|message|>")) + "<|message|>x"
    for size in (1, 7, 2 * MAX_HEADER):
        assert "".join(map(str, read("harmony", fits, size))) == "x"
        assert "".join(map(str, read("harmony", " " + fits, size))) == " " + fits


@pytest.mark.parametrize("rest", ["<", "<function=", "</", "</tool_call"])
def test_a_broken_call_without_end(rest: str) -> None:
    text = '<tool_call>{"name": "f", "arguments": x' + rest * (LONG // len(rest))
    (begun, passed), rest_of_it = parts_of([text], "hermes", TOOLS)
    # What comes at once is one delta, and no text.
    assert isinstance(begun, dict)
    assert isinstance(passed, dict)
    assert begun["index"] == passed["index"] == 0
    assert not any(isinstance(part, str) for part in rest_of_it)


def test_digits_that_are_no_number() -> None:
    assert json_of_literal("1" * LONG + "x") is None
    assert json_of_literal("1" * LONG + ".1" * 2) is None


def test_many_thoughts_are_counted() -> None:
    request = parse_request({"messages": [{"role": "user", "content": "Hi"}]}, "llm/v1/chat")
    count = LONG // len(ANALYSIS)
    text = ANALYSIS * count + "<|start|>assistant<|channel|>final<|message|>Hi"
    starts = tuple(range(0, len(text), 2))
    writer = ChatWriter(request, [EncodedPrompt(1)], "m", lambda: reader("harmony"))
    completion = Completion(text, len(starts), "stop", token_starts=starts)
    usage = writer.respond([completion])["usage"]
    inside = sum(start < count * len(ANALYSIS) for start in starts)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": inside}


@pytest.mark.parametrize(
    "pattern", ["^[" + r"\a" * 10_000, "^" + "[" * 20_000, "^" + "(" * 9_000 + ")" * 9_000]
)
def test_patterns_that_are_not_closed_or_deep(pattern: str) -> None:
    tools = [tool("f", closed(a={"type": "string", "pattern": pattern}))]
    model = Markings(lambda _: False, lambda _: None)
    assert tool_call_grammar(FORMATS["glm4"], tools, ToolCallRule(required=True), model)


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("^a|b", True),
        ("^(a|b)", False),
        ("^(a)|b", True),
        ("a)|(b$", True),
        (r"^\(a|b", True),
        (r"^[(]a|b", True),
        (r"^[\](]a|b", True),
        (r"^[](]a|b", True),
        ("^[^]|]a", False),
        (r"^[a\]|]", False),
        (r"^\|", False),
    ],
)
def test_branches_beside_an_end_are_refused(pattern: str, refused: bool) -> None:
    tools = [tool("f", closed(a={"type": "string", "pattern": pattern}), strict=True)]
    model = Markings(lambda _: False, lambda _: None)
    with pytest.raises(InvalidRequestError) if refused else nullcontext():
        tool_call_grammar(FORMATS["glm4"], tools, ToolCallRule(required=True), model)


def test_empty_lines_of_a_grammar() -> None:
    text = "start: x" + "\n" * 30_000
    assert structured.lark(text).text == text
    with pytest.raises(InvalidRequestError, match="temperature"):
        structured.lark("start: x\n\n  x[temperature=0.5]: /a/")
