"""Tool calls in text, in every form: the same whole and in pieces, however they are cut."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tool_cases import CITY, MARKS, format_in, parse, parts_of

if TYPE_CHECKING:
    from mlflow_phi3_onnx.openai.tools.deltas import Part


class Written(NamedTuple):
    """What a model wrote, and what is in it: text, and names with their arguments."""

    text: str
    content: str
    calls: list[tuple[str, str]]


PARIS = ("f", '{"city": "Paris"}')
G = '{"name": "g"}'

CALLS = [
    Written(f"<|tool_call|>[{CITY}]<|/tool_call|>", "", [PARIS]),
    Written(f"<|tool_call|>[{CITY}]", "", [PARIS]),
    Written(f"<|tool_call|>{CITY}<|/tool_call|>", "", [PARIS]),
    Written(f"Sure. <|tool_call|>[{CITY}, {G}]<|/tool_call|>\n", "Sure. ", [PARIS, ("g", "{}")]),
    Written(f"<|tool_call|> [ {CITY} ,\n{CITY} ] <|/tool_call|>", "", [PARIS, PARIS]),
    Written(f"\n<tool_call>\n{CITY}\n</tool_call>", "", [PARIS]),
    Written(
        f"Two:<tool_call>{CITY}</tool_call>\n<tool_call>{G}</tool_call>",
        "Two:",
        [PARIS, ("g", "{}")],
    ),
    Written(f"<tool_call>{CITY}<tool_call>{CITY}", "", [PARIS, PARIS]),
    Written('{"name": "f", "parameters": {"x": "<"}}', "", [("f", '{"x": "<"}')]),
    Written(' \n{"type": "function", "name": "f", "parameters": {}}\n', "", [("f", "{}")]),
    Written('<|python_tag|>{"name": "f", "parameters": {}}<|eom_id|>', "", [("f", "{}")]),
    Written(G, "", [("g", "{}")]),
    # Several after one mark, or without one, with or without a list.
    Written(f"<|tool_call|>{CITY}, {G}<|/tool_call|>", "", [PARIS, ("g", "{}")]),
    Written(f"{CITY}; {CITY}", "", [PARIS, PARIS]),
    Written(f"{CITY}\n{CITY};", "", [PARIS, PARIS]),
    Written(f"<tool_call>{CITY}\n{G}</tool_call> x", " x", [PARIS, ("g", "{}")]),
    Written(f"<tool_call>{CITY},{CITY};{G}{CITY}", "", [PARIS, PARIS, ("g", "{}"), PARIS]),
    # The order and the number of members.
    Written('{"parameters": {"a": 1}, "name": "f"}', "", [("f", '{"a": 1}')]),
    Written('<tool_call>{"arguments": [1], "name": "f"}', "", [("f", "[1]")]),
    Written('<tool_call>{"why": {"name": "x"}, "name": "f"}</tool_call>', "", [("f", "{}")]),
    Written('{"name": "f", "parameters": {}, "why": [], "arguments": 1}', "", [("f", "{}")]),
    # Of a name or arguments that come twice, the first count.
    Written('{"name": "f", "parameters": {}, "name": "x"} x', " x", [("f", "{}")]),
    Written('<tool_call>{"name": "f", "name": ["g"]}</tool_call>', "", [("f", "{}")]),
    Written('<tool_call>{"arguments": [], "arguments": [1], "name": "f"}', "", [("f", "[]")]),
    # Arguments are what the model wrote, in white space, escapes and numbers.
    Written('{"name": "f", "parameters":{ "a":1.50 }}', "", [("f", '{ "a":1.50 }')]),
    Written('{"name": "\\u0066", "parameters": {"é": "\\u00e9"}}', "", [("f", '{"é": "\\u00e9"}')]),
    Written('{"name": "f", "parameters": {"a": "\\ud800é"}}', "", [("f", '{"a": "\\ud800é"}')]),
    Written(
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\\"}"}}</tool_call>',
        "",
        [("f", '{"a": "</tool_call>\\"}"}')],
    ),
    Written(
        '<tool_call>{"name": "f", "arguments": ' + "[" * 2000 + "]" * 2000 + "}",
        "",
        [("f", "[" * 2000 + "]" * 2000)],
    ),
    # Of arguments in a string, it is what that stands for.
    Written('{"name": "f", "arguments": "{\\"a\\": 1}"}', "", [("f", '{"a": 1}')]),
    Written('{"arguments": "{}", "name": "f"}', "", [("f", "{}")]),
    Written(
        '<tool_call>{"name": "f", "arguments": "\\u007b\\/\\t\\ud83d\\ude00\\ud83dx\\ude00"}',
        "",
        [("f", "{/\t😀\\ud83dx\\ude00")],
    ),
    Written('<tool_call>{"name": "f", "arguments": "Paris"}', "", [("f", "Paris")]),
]

TEXTS = [
    "Hello!",
    "",
    "  \n ",
    "{",
    '{"a": 1}',
    '{"name": "unknown", "parameters": {}}',
    '{"name": ["f"], "parameters": {}}',
    '{"name": "f", "name": "g", "parameters": {}}',
    '{"name": "f", "parameters": [1]}',
    '{"name": "f", "parameters": "x"}',
    '{"name": "f", "parameters": "{}',
    '{"name": "f", "parameters": ' + "[" * 2000,
    '{"name": "f", "description": "A tool.", "parameters": {"type": "object"}}',
    '{"parameters": 1, "name": "f"}',
    '{"name": "f"',
    f"[{CITY}]",
    f"It is {CITY}",
    "<tool_call>",
    "<tool_call>f()</tool_call>",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f\\q"}</tool_call>',
    "<|tool_call|>[1]<|/tool_call|>",
    "<|tool_call|>[]<|/tool_call|>",
    "<|python_tag|>print(1)",
    "a < b <tool <|tool",
    "<<tool_call <|tool_call>",
]

BROKEN = [
    # What is begun stays a call: its arguments are all that was written.
    Written('{"name": "f", "parameters": {"x": NaN}}', "", [("f", '{"x": NaN}}')]),
    Written('{"name": "f", "parameters": {"x": 01}} <b', "", [("f", '{"x": 01}} <b')]),
    Written(
        '<tool_call>{"name": "f", "arguments": {"a": "b"c"}}</tool_call> Done.',
        " Done.",
        [("f", '{"a": "b"c"}}')],
    ),
    Written(
        '<|tool_call|>[{"name": "f", "arguments": {"a": "\n<b>"}}]<|/tool_call|>',
        "",
        [("f", '{"a": "\n<b>"}}]')],
    ),
    Written('<tool_call>{"name": "f" -> {}}</tool_call>', "", [("f", " -> {}}")]),
    Written('<tool_call>{"name": "f", "arguments": </tool_call>', "", [("f", "")]),
    Written('<tool_call>{"name": "f", "arguments": "\\x"}</tool_call>', "", [("f", 'x"}')]),
    # Arguments that are whole do not suffer from what is around them.
    Written('<tool_call>{"name": "f", "arguments": {}</tool_call>', "", [("f", "{}")]),
    Written('<|tool_call|>[{"name": "f", "arguments": {}]<|/tool_call|>', "", [("f", "{}")]),
    Written('<tool_call>{"name": "f", "arguments": {}}}</tool_call>', "}", [("f", "{}")]),
    Written('{"name": "f", "parameters": {}} is a call', " is a call", [("f", "{}")]),
    # Each call is read for itself.
    Written(f"{CITY}; and more", "; and more", [PARIS]),
    Written(f"{CITY}, {{}} x", ", {} x", [PARIS]),
    Written(f"<tool_call>{CITY}, , {CITY}</tool_call>", f", , {CITY}", [PARIS]),
    Written(f'<tool_call>{CITY}; {{"name": "x"}}</tool_call>', '; {"name": "x"}', [PARIS]),
    Written(f"<tool_call>{CITY}</tool_call> and more", " and more", [PARIS]),
    Written(f"<tool_call>{CITY}</tool_call> <tool_call>x", " <tool_call>x", [PARIS]),
    Written(f"<tool_call>x<tool_call>{CITY}</tool_call>", "<tool_call>x", [PARIS]),
    Written(f'<|tool_call|>[{CITY}, {{"name": "x"}}]<|/tool_call|>', ' {"name": "x"}]', [PARIS]),
    Written(f"{{}} <tool_call>{CITY}</tool_call>", "{} ", [PARIS]),
]

CUT = [
    Written('<tool_call>{"name": "f', '<tool_call>{"name": "f', []),
    Written('<tool_call>{"name": "f"', "", [("f", "")]),
    Written('<tool_call>{"name": "f", "argum', "", [("f", "")]),
    Written('<tool_call>{"name": "f", "arguments": {"a": "\\u00', "", [("f", '{"a": "\\u00')]),
    Written('<tool_call>{"name": "f", "arguments": "{\\"a\\u00', "", [("f", '{"a')]),
    Written('{"name": "f", "parameters": {"a": [', "", [("f", '{"a": [')]),
    Written('{"parameters": {}, "name', '{"parameters": {}, "name', []),
    Written(f"<|tool_call|>[{CITY},", "", [PARIS]),
    Written(f'<|tool_call|>[{CITY}, {{"na', ' {"na', [PARIS]),
    Written(f"<tool_call>{CITY}</tool_", "", [PARIS]),
    Written(f"<tool_call>{CITY}</tool_cat", "</tool_cat", [PARIS]),
    Written(f"<tool_call>{CITY} a </tool_", " a </tool_", [PARIS]),
    Written('<tool_call>{"name": "f", "arguments": {x}}</tool_', "", [("f", "{x}}")]),
]

CASES = [*CALLS, *(Written(text, text, []) for text in TEXTS), *BROKEN, *CUT]


def cuts(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text[:60])
def test_calls_are_found_in_pieces_of_every_size(case: Written) -> None:
    for size in [1, 2, 3, 5, 7, 11, 16, 23, 40, len(case.text) + 1]:
        assert parse(cuts(case.text, size)) == (case.content, case.calls)
    for _, arguments in case.calls:
        arguments.encode()


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.text[:60])
def test_no_part_of_a_call_is_passed_on_as_text(case: Written) -> None:
    passed = [piece for pieces in parts_of(case.text) for piece in pieces]
    assert "".join(piece for piece in passed if isinstance(piece, str)) == case.content


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(CASES))
def test_calls_are_found_however_the_text_is_cut(data: st.DataObject, case: Written) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, len(case.text)), max_size=12)))
    pieces = [case.text[a:b] for a, b in itertools.pairwise([0, *edges, len(case.text)])]
    assert parse(pieces) == (case.content, case.calls)


SPACES = st.text(" \n\t", max_size=2)
WORDS = st.lists(
    st.sampled_from(
        [
            *'{}[]"\\<>/:, \né😀\ud800',
            "<tool_call>",
            "</tool_call>",
            "<|tool_call|>",
            "name",
            "\\u12",
        ]
    ),
    max_size=5,
).map("".join)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def json_texts(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> str:
    """JSON as a model may write it: in any white space, with characters escaped or not."""
    value = draw(values)
    written = json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        separators=(draw(SPACES) + "," + draw(SPACES), draw(SPACES) + ":" + draw(SPACES)),
        indent=draw(st.sampled_from([None, 0, 2])),
    )
    # Half a surrogate pair is no character that a model can write, but for its escape.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half.group()):04x}", written)


@st.composite
def calls(draw: st.DrawFn, key: str, *, marked: bool) -> tuple[str, tuple[str, str]]:
    """One call's object, and the name and arguments in it."""
    name = draw(st.sampled_from("fg"))
    arguments = draw(json_texts(st.dictionaries(WORDS, VALUES, max_size=3)))
    written = arguments
    if draw(st.booleans()):
        written = json.dumps(arguments, ensure_ascii=draw(st.booleans()))
    members = [("name", f'"{name}"'), (key, written)]
    if draw(st.booleans()):
        beside = draw(json_texts(VALUES)) if marked else '"function"'
        members.append(("other" if marked else "type", beside))
    members = draw(st.permutations(members))
    gap = draw(SPACES)
    inside = f"{gap},{gap}".join(f'"{key}"{gap}:{gap}{value}' for key, value in members)
    return f"{{{gap}{inside}{gap}}}", (name, arguments)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, Written]:
    """A format's name, and a completion in it."""
    form = draw(st.sampled_from(list(MARKS)))
    if form == "llama3":
        tag = draw(st.sampled_from(["", "<|python_tag|>"]))
        written, call = draw(calls("parameters", marked=bool(tag)))
        return form, Written(draw(SPACES) + tag + written + draw(SPACES), "", [call])
    before = draw(st.sampled_from(["", "Sure.", "a < b\n", "<|", "[x]: "]))
    several = draw(st.lists(calls("arguments", marked=True), min_size=1, max_size=3))
    objects = [draw(SPACES) + written + draw(SPACES) for written, _ in several]
    if form == "phi4_mini":
        text = f"{before}<|tool_call|>[{','.join(objects)}]<|/tool_call|>"
    else:
        blocks = [f"<tool_call>{written}</tool_call>{draw(SPACES)}" for written in objects]
        text = before + "".join(blocks)
    return form, Written(text, before, [call for _, call in several])


@settings(max_examples=150, deadline=None)
@given(answers(), st.data())
def test_calls_of_every_form_are_found_however_they_are_cut(
    written: tuple[str, Written], data: st.DataObject
) -> None:
    form, answer = written
    expected = (answer.content, answer.calls)
    assert parse([answer.text], form) == expected
    assert parse(answer.text, form) == expected
    edges = sorted(data.draw(st.sets(st.integers(0, len(answer.text)), max_size=20)))
    pieces = [answer.text[a:b] for a, b in itertools.pairwise([0, *edges, len(answer.text)])]
    assert parse(pieces, form) == expected
    for _, arguments in answer.calls:
        assert isinstance(json.loads(arguments), dict)


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>"),
    *('{"name": "f"', ', "arguments": ', '"parameters": ', '"{\\"a\\": ', "{", "}", "[", "]"),
    *(",", ":", '"', "\\", "\\ud83d", "\\u", "1", "-", "true", " ", "\n", "x", "<", "<|", CITY),
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14), st.data())
def test_any_text_gives_the_same_whole_and_in_pieces(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    for form in MARKS:
        whole = parse([text], form)
        assert parse(text, form) == whole
        assert parse(parts, form) == whole
        assert parse(cuts(text, data.draw(st.integers(1, 9))), form) == whole


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["<", "tool_call>", "<|tool_call|>", "{", "}", " ", "a", "[", '"']))
)
def test_no_text_is_lost(pieces: list[str]) -> None:
    for form in MARKS:
        assert parse(pieces, form) == ("".join(pieces), [])


def test_a_call_that_is_cut_between_the_halves_of_a_character_has_neither() -> None:
    text = '<tool_call>{"name": "f", "arguments": "\\u007b\\ud83d\\ude00'
    for end in range(text.index("d83d"), len(text) - 1):
        _, found = parse([text[:end]], "hermes")
        assert found in ([], [("f", "{")])
    assert parse([text]) == ("", [("f", "{😀")])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*CALLS, *BROKEN]), st.data())
def test_a_cut_call_has_the_beginning_of_its_arguments(case: Written, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(case.text)))
    _, found = parse([case.text[:end]], format_in(case.text))
    assert len(found) <= len(case.calls)
    for (name, arguments), (whole_name, whole) in zip(found, case.calls, strict=False):
        assert name == whole_name
        assert whole.startswith(arguments) or (arguments, whole) == ("", "{}")


def shown_call(delta: Part) -> str:
    assert isinstance(delta, dict)
    function = delta["function"]
    return f"[{function['name']}]" if "name" in function else function["arguments"]


def passed_on(text: str) -> str:
    """Show what is passed on with each character: the character, a name in brackets, or a dot."""
    shown: list[str] = []
    for pieces in parts_of(text)[:-1]:
        texts = [piece if isinstance(piece, str) else shown_call(piece) for piece in pieces]
        shown.append("".join(texts) or ".")
    return "".join(shown)


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("a <b> <tool_x", "a .<b> ......<tool_x"),
        (
            '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n!',
            "." * 22 + "[f]" + "." * 15 + '{"a": 1}' + "." * 14 + "\n!",
        ),
        (
            '{"name": "f", "parameters": {"a": 1}}',
            "." * 28 + '[f]{"a": 1}.',
        ),
        ('{"city": 1}', "......." + '{"city": 1}'),
        ('{"name": "Ann"}', "............." + '{"name": "Ann"}'),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\u00e9\\ud83d\\ude00"',
            "." * 22 + "[f]" + "." * 16 + '{."a.....é...........😀.',
        ),
    ],
)
def test_as_little_as_can_be_is_held_back(text: str, passed: str) -> None:
    assert passed_on(text) == passed


def test_a_call_s_name_comes_before_and_without_its_arguments() -> None:
    first, *others = [piece for piece in parts_of([CITY])[0] if isinstance(piece, dict)]
    assert first["function"] == {"name": "f", "arguments": ""}
    assert re.fullmatch("[A-Za-z0-9]{9}", first["id"] or "")
    assert [("id" in piece, "name" in piece["function"]) for piece in others] == [(False, False)]
