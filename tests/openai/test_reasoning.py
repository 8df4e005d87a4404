"""What is a thought in a completion, and what a grammar lets a model think before it is held."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.openai.reasoning.base import ENDLESS
from mlflow_phi3_onnx.openai.reasoning.registry import (
    REASONING_FORMATS,
    REASONING_SETTINGS,
    choose_reasoning,
)
from mlflow_phi3_onnx.openai.tools.deltas import reasoning_of, whole_message
from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.formats.registry import FORMATS
from tests.openai.test_tool_grammar import END, byte_level, compiler_of
from tests.support.tool_cases import tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_phi3_onnx.openai.reasoning.base import Start
    from mlflow_phi3_onnx.openai.tools.deltas import Part

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
ONE = [("f", '{"a": 1}')]
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
NEXT = "<|start|>assistant"


class Case(NamedTuple):
    """A completion, and what is in it."""

    name: str
    start: Start
    text: str
    thought: str
    content: str
    calls: list[tuple[str, str]] = []  # noqa: RUF012 - of a tuple
    spans: list[tuple[int, int]] = []  # noqa: RUF012 - of a tuple


def think(start: Start, text: str, *told: Any) -> Case:
    return Case("think", start, text, *told)


def harmony(start: Start, text: str, *told: Any) -> Case:
    return Case("harmony", start, text, *told)


CASES = [
    think("free", "Hi.", "", "Hi."),
    think("free", "  Hi. ", "", "  Hi. "),
    think("free", "", "", ""),
    think("free", "<think>\n Hm,\n  so. \n</think>\n\nHi. ", "Hm,\n  so.", "Hi. ", [], [(0, 28)]),
    think("free", "\n<think>a</think>b", "a", "b", [], [(0, 17)]),
    think("free", "<think>\n\n</think>\n\nHi.", "", "Hi.", [], [(0, 17)]),
    think("free", "<think></think>", "", "", [], [(0, 15)]),
    think("free", "<think>a < b </thin </think>c", "a < b </thin", "c", [], [(0, 28)]),
    think("free", "<think>a </th", "a </th", "", [], [(0, ENDLESS)]),
    think("free", "<think>a \n", "a", "", [], [(0, ENDLESS)]),
    think("free", "<think", "", "<think"),
    think("free", " <thin", "", " <thin"),
    think("free", "Hi. <think>a</think>", "", "Hi. <think>a</think>"),
    think("free", "Hi.</think>b", "", "Hi.</think>b"),
    think("free", "<think>a</think><think>b</think>", "a", "<think>b</think>", [], [(0, 16)]),
    think("free", f"<think>a {CALL}</think>\n{CALL}", f"a {CALL}", "", ONE, [(0, 76)]),
    think("open", "a</think>\n\nb", "a", "b", [], [(0, 9)]),
    think("open", "\n a", "a", "", [], [(0, ENDLESS)]),
    think("open", "", "", "", [], [(0, ENDLESS)]),
    think("open", "<think>\na</think>b", "a", "b", [], [(0, 17)]),
    think("open", "<thinking>a</think>b", "<thinking>a", "b", [], [(0, 19)]),
    think("open", f"a</think>b {CALL}", "a", "b ", ONE, [(0, 9)]),
    think("closed", "<think>a</think>b", "", "<think>a</think>b"),
    think("closed", f"\n{CALL}", "", "", ONE),
    Case("mistral_think", "free", "[THINK]a[b][/THINK]c", "a[b]", "c", [], [(0, 19)]),
    harmony("free", f"{ANALYSIS}Hm<|end|>{FINAL}Hi<|return|>", "Hm", "Hi", [], [(0, 39)]),
    harmony("free", f"{ANALYSIS}Hm<|end|>{FINAL}Hi", "Hm", "Hi", [], [(0, 39)]),
    harmony("free", f"{ANALYSIS}Hm <|en", "Hm <|en", "", [], [(0, ENDLESS)]),
    harmony(
        "free", f"{ANALYSIS}a<|end|>{NEXT}{ANALYSIS}b", "a\n\nb", "", [], [(0, 38), (38, ENDLESS)]
    ),
    harmony("free", f"{ANALYSIS}a<|end|>{NEXT}<|chan", "a", "", [], [(0, 38)]),
    harmony("free", "Hi.", "", "Hi."),
    harmony("free", "<|chan", "", "<|chan"),
    harmony("free", "<|channel|>final<|message|>a<|end|>", "", "a"),
    harmony(
        "free",
        f"{ANALYSIS}a<|end|>{NEXT}<|channel|>commentary to=functions.f <|constrain|>json"
        '<|message|>{"a": 1}<|call|>',
        *("a", "", ONE, [(0, 38)]),
    ),
    harmony("free", ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}', "", "", ONE),
    harmony(
        "free", " to=functions.f<|channel|>commentary<|message|><|call|>", "", "", [("f", "{}")]
    ),
    harmony("free", ' to=functions.x<|channel|>commentary json<|message|>{"a"', "", '{"a"'),
    harmony("free", "<|channel|>analysis to=python<|message|>1", "1", "", [], [(0, ENDLESS)]),
    harmony(
        "free",
        f"<|channel|>commentary<|message|>I look.<|end|>{FINAL}Hi.<|return|>",
        *("", "I look.\n\nHi."),
    ),
    harmony("open", f"a<|end|>{FINAL}b", "a", "b", [], [(0, 8)]),
    harmony("closed", "b<|return|>", "", "b"),
]


def read(case: Case, texts: Sequence[str]) -> Case:
    calls = "harmony" if case.name == "harmony" else "hermes"
    parser = FORMATS[calls].parser([tool("f")])
    reader = REASONING_FORMATS[case.name].reader(case.start, parser)
    parts: list[Part] = [part for text in texts for part in reader.add(text)]
    parts += reader.finish()
    assert "" not in parts
    content, called = whole_message(parts)
    functions = [(c["function"]["name"], c["function"]["arguments"]) for c in called]
    assert reader.calls == len(functions)
    told = (reasoning_of(parts), content, functions, list(reader.thoughts))
    return Case(case.name, case.start, case.text, *told)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.start} {case.text}")
def test_a_completion_is_read_the_same_however_it_is_cut(case: Case) -> None:
    for size in (1, 2, 3, 7, 1000):
        texts = [case.text[i : i + size] for i in range(0, len(case.text), size)]
        assert read(case, texts) == case


PIECES = [
    *("<think>", "</think>", "<", "/", "think>", " ", "\n", "a", "<tool_call>", CALL),
    *("<|channel|>", "analysis", "<|message|>", "<|end|>", "<|start|>", "to=functions.f", "|>"),
]


@given(
    st.sampled_from(["think", "harmony"]),
    st.sampled_from(["free", "open", "closed"]),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.data(),
)
@settings(max_examples=400, deadline=None)
def test_cutting_any_completion_changes_nothing(
    name: str, start: Start, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    texts = [text[a:b] for a, b in pairwise(edges)]
    case = Case(name, start, text, "", "")
    assert read(case, texts) == read(case, [text])


def named(setting: str, template: str, *control: str) -> str | None:
    model = Markings(template.__contains__, dict.fromkeys(control, 7).get)
    found = choose_reasoning(setting, model)
    return found.name if found else None


@pytest.mark.parametrize(
    ("template", "control", "name"),
    [
        ("{{ '<think>\\n' }}", [], "think"),
        ("content.split('</think>')", [], "think"),
        ("", ["<think>"], "think"),
        ("", ["[THINK]"], "mistral_think"),
        ("<|channel|>analysis<|message|>", [], "harmony"),
        ("", ["<|channel|>", "<|message|>", "<think>"], "harmony"),
        ("", ["<|channel|>"], None),
        ("thinking", ["<|think|>"], None),
        ("", [], None),
    ],
)
def test_template_and_control_tokens_tell(
    template: str, control: list[str], name: str | None
) -> None:
    assert named("auto", template, *control) == name
    for setting in REASONING_SETTINGS[1:]:
        assert named(setting, template, *control) == (None if setting == "none" else setting)


@pytest.mark.parametrize(
    ("name", "prompt", "start"),
    [
        ("think", "What is <think>?<|assistant|>\n", "free"),
        ("think", "<|assistant|><think>\n", "open"),
        ("think", "<|assistant|><think>\n\n</think>\n\n", "closed"),
        ("mistral_think", "[/INST][THINK]", "open"),
        ("harmony", "<|start|>assistant", "free"),
        ("harmony", f"<|start|>assistant{ANALYSIS}", "open"),
        ("harmony", FINAL, "closed"),
    ],
)
def test_the_end_of_a_prompt_tells_where_its_completion_begins(
    name: str, prompt: str, start: Start
) -> None:
    assert REASONING_FORMATS[name].start(prompt) == start


@pytest.mark.parametrize(
    ("name", "content", "start"),
    [
        ("think", "Hi", "closed"),
        ("think", "<think>a", "open"),
        ("think", "<think>a</think>b", "closed"),
        ("harmony", "Hi", "closed"),
    ],
)
def test_so_does_a_message_that_is_continued(name: str, content: str, start: Start) -> None:
    assert REASONING_FORMATS[name].start_within(content) == start


ANSWERS = {
    "json_schema": Grammar("json_schema", '{"enum": [{"a": 1}]}'),
    "regex": Grammar("regex", r'\{"a": ?1\}'),
    "lark": Grammar("lark", 'start: ANY\nANY: "{\\"a\\": 1}" | "{\\"a\\":1}"'),
}
GOOD, BAD = '{"a": 1}', '{"a": 2}'
MADE = Grammar("lark", r'start: "<tool_call>" /[a-z]/ "</tool_call>"')
THINKS = ["<think>Hm, {so}.</think>", "<think></think>\n\n", "<think>\na < b </thin </think>\n"]
CHANNELS = [
    f"{ANALYSIS}Hm<|end|>{NEXT}<|channel|>final<|message|>",
    f"{ANALYSIS}<|end|>{NEXT}{ANALYSIS}b<|end|>{NEXT}<|channel|>final<|message|>",
]


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("name", ["think", "harmony"])
@pytest.mark.parametrize("start", ["free", "open"])
def test_a_grammar_holds_from_the_end_of_the_thoughts_on(
    kind: str, name: str, start: Start, *, control: bool
) -> None:
    form = REASONING_FORMATS[name]
    tokenizer = byte_level([*form.marks] if control else [])
    compiler = compiler_of(tokenizer)
    model = Markings(lambda _: True, tokenizer.token_to_id)

    def takes(text: str, *held: str) -> bool:
        frame = form.frame(start, model, held)
        parts = {"answer": ANSWERS[kind], "calls": MADE}
        matcher = compiler.matcher(
            Grammar("lark", frame, "x", tuple((name, parts[name]) for name in held))
        )
        for token in tokenizer.encode(text).ids:
            if matcher.done or not matcher.allowed()[token]:
                return False
            matcher.accept(token)
        return matcher.done or bool(matcher.allowed()[tokenizer.token_to_id(END)])

    def allowed(text: str) -> bool:
        assert takes(text, "answer", "calls") == takes(text, "answer")
        return takes(text, "answer")

    thoughts = THINKS if name == "think" else CHANNELS
    opening = "<think>" if name == "think" else ANALYSIS
    final = "" if name == "think" else "<|channel|>final<|message|>"
    if start == "open":
        thoughts = [thought.removeprefix(opening) for thought in thoughts]
    assert allowed(final + GOOD) == (start == "free")
    for thought in thoughts:
        assert allowed(thought + GOOD)
        assert not allowed(thought + BAD)
        assert not allowed(thought)
        before = thought.removesuffix("<|channel|>final<|message|>")
        call = "<tool_call>x</tool_call>"
        assert takes(before + call, "answer", "calls")
        assert not takes(before + call, "answer")
        assert takes(before + call, "calls")
    assert not allowed(GOOD + " ")


def test_what_is_wrong_with_a_form_is_told_however_long_the_model_may_think() -> None:
    tokenizer = byte_level(["<think>", "</think>"])
    compiler = compiler_of(tokenizer)
    model = Markings(lambda _: True, tokenizer.token_to_id)
    frame = REASONING_FORMATS["think"].frame("open", model, ["answer"])
    empty = Grammar("json_schema", '{"type": "integer", "minimum": 2, "maximum": 1}', "answer form")
    with pytest.raises(Exception, match="answer form cannot be used as a grammar"):
        compiler.matcher(Grammar("lark", frame, "x", (("answer", empty),)))
    assert np.asarray(compiler.eos).tolist() == [tokenizer.token_to_id(END)]


@pytest.mark.parametrize("required", [True, False])
def test_a_call_on_a_channel_is_held_to_its_schema(*, required: bool) -> None:
    form = FORMATS["harmony"]
    marks = REASONING_FORMATS["harmony"].marks
    tokenizer = byte_level([*marks])
    compiler = compiler_of(tokenizer)
    model = Markings(lambda _: True, tokenizer.token_to_id)
    text = form.grammar({"f": '{"enum": [{"a": 1}]}'}, model, required=required, parallel=True)
    grammar = Grammar("lark", text)

    def takes(text: str) -> bool:
        matcher = compiler.matcher(grammar)
        for token in tokenizer.encode(text).ids:
            if matcher.done or not matcher.allowed()[token]:
                return False
            matcher.accept(token)
        return matcher.done or bool(matcher.allowed()[tokenizer.token_to_id(END)])

    head = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
    assert takes(head.format("f") + '{"a": 1}')
    assert not takes(head.format("f") + '{"a": 2}')
    assert not takes(head.format("g") + '{"a": 1}')
    assert takes("<|channel|>final<|message|>Hi.") == (not required)
