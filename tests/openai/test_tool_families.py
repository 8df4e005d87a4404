"""Tool calls in the forms of families that write no plain JSON, whole and in pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.family_cases import CASES, TOOLS, Case, gemma, glm, qwen
from tests.support.tool_cases import closed, parse, parts_of, tool


def cuts(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.form}: {case.text}" for case in CASES])
def test_calls_are_found_whole_and_in_every_cut(case: Case) -> None:
    expected = (case.content, case.calls)
    assert parse([case.text], case.form, TOOLS) == expected
    for size in range(1, len(case.text)):
        assert parse(cuts(case.text, size), case.form, TOOLS) == expected


@pytest.mark.parametrize("form", ["qwen3_coder", "glm4", "mistral", "gemma4", "lfm2", "pythonic"])
def test_deep_values_break_nothing(form: str) -> None:
    deep = "[" * 3000
    text = {
        "qwen3_coder": qwen(("l", deep)),
        "glm4": glm(("l", deep)),
        "mistral": f"[TOOL_CALLS]f[ARGS]{deep}",
        "gemma4": f"<|tool_call>call:f{{l:{deep}}}<tool_call|>",
        "lfm2": f"<|tool_call_start|>[f(l={deep})]<|tool_call_end|>",
        "pythonic": f"[f(l={deep})]",
    }[form]
    content, calls = parse([text], form, TOOLS)
    assert content == ""
    assert [name for name, _ in calls] == ["f"]
    assert deep in calls[0][1]


FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<function=f>",
        "<function=",
        "<parameter=city>",
        "</parameter>",
    ),
    *(
        "</function>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "f\n",
        "[TOOL_CALLS]",
    ),
    *(
        "[ARGS]",
        "[CALL_ID]",
        "<|tool_call>",
        "call:f{",
        "<tool_call|>",
        '<|"|>',
        "<|tool_call_start|>",
    ),
    *("<|tool_call_end|>", "f(", "[f(n=", "city=", "functools", '{"name": "f"', ', "arguments": '),
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ":",
        "=",
        "'",
        '"',
        "\\",
        "\\ud83d",
        "1",
        "-",
        "True",
        "n",
    ),
    *(" ", "\n", "x", "<", "é", "f", "g"),
]


def test_a_type_in_other_words_is_the_kind_that_it_means() -> None:
    texts = tool("f", closed(a={"type": "STRING"}, b={"type": "float"}, c={"type": "dict"}))
    written = qwen(("a", "1"), ("b", "1"), ("c", '{"d": 1}'))
    expected = [("f", '{"a": "1", "b": 1, "c": {"d": 1}}')]
    assert parse([written], "qwen3_coder", [texts]) == ("", expected)


FORMS = ["qwen3_coder", "glm4", "mistral", "gemma4", "lfm2", "pythonic", "functools"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=16), st.data())
def test_any_text_gives_the_same_whole_and_in_pieces(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    for form in FORMS:
        whole = parse([text], form, TOOLS)
        assert parse(text, form, TOOLS) == whole
        assert parse(cuts(text, data.draw(st.integers(1, 9))), form, TOOLS) == whole


@pytest.mark.parametrize("case", CASES, ids=[f"{case.form}: {case.text}" for case in CASES])
def test_a_cut_call_has_the_beginning_of_its_arguments(case: Case) -> None:
    for end in range(len(case.text)):
        _, found = parse([case.text[:end]], case.form, TOOLS)
        assert len(found) <= len(case.calls)
        for (name, arguments), (whole_name, whole) in zip(found, case.calls, strict=False):
            assert name == whole_name
            assert whole.startswith(arguments)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["l", "o", "any2", "y"]), VALUES, max_size=3))
def test_what_python_writes_is_read_as_what_it_is(arguments: dict[str, Any]) -> None:
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    content, [(name, read)] = parse([f"[f({written})]"], "pythonic", TOOLS)
    assert (content, name) == ("", "f")
    assert json.loads(read) == json.loads(json.dumps(arguments))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("qwen3_coder", qwen(("city", "Par"))),
        ("glm4", glm(("city", "Par"))),
        ("gemma4", f"<|tool_call>call:f{{city:{gemma('Par')}}}"),
        ("lfm2", "<|tool_call_start|>[f(city='Par')]"),
        ("pythonic", "[f(city='Par')]"),
    ],
)
def test_texts_are_passed_on_as_they_are_written(form: str, text: str) -> None:
    passed = [
        [piece["function"]["arguments"] for piece in pieces if isinstance(piece, dict)]
        for pieces in parts_of(text, form, TOOLS)
    ]
    first = text.index("Par")
    assert [passed[at][-1][-1:] for at in range(first, first + 3)] == ["P", "a", "r"]
    assert "".join(itertools.chain.from_iterable(passed)) == '{"city": "Par"}'


@pytest.mark.parametrize("line", ["", "\n"])
def test_a_value_without_its_closing_tag_ends_with_the_call(line: str) -> None:
    written = f"<tool_call>\n<function=f>\n<parameter=city>\nParis\n</function>{line}</tool_call>"
    after = f"{written}{qwen(('city', 'Rome'))}"
    for cuts in ([after], list(after)):
        content, calls = parse(cuts, "qwen3_coder", TOOLS)
        assert content == ""
        assert calls == [("f", '{"city": "Paris"}'), ("f", '{"city": "Rome"}')]


def test_a_value_may_hold_the_end_of_a_function_alone() -> None:
    written = qwen(("city", "a</function>b"))
    assert parse([written], "qwen3_coder", TOOLS) == ("", [("f", '{"city": "a</function>b"}')])
