"""Tool calls: parsed in every form, and enforced."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.openai.tool_grammar import CallRule, call_grammar
from mlflow_phi3_onnx.openai.tools import ToolCallParser
from mlflow_phi3_onnx.prompt.grammar import GrammarCompiler

if TYPE_CHECKING:
    from collections.abc import Callable

WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, "description": f"Does {name}.", **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SMALL = {"type": "integer", "minimum": 0, "maximum": 999}
TOOLS = [
    tool("get_weather", closed(city={"type": "string", "maxLength": 20})),
    tool("add_numbers", closed(first=SMALL, second=SMALL)),
    tool(
        "book_flight",
        {
            "$defs": {"code": {"type": "string", "pattern": "^[A-Z]{3}$"}},
            **closed(origin={"$ref": "#/$defs/code"}, stops={"enum": [0, 1, 2]}),
        },
    ),
    tool("stop_all"),
    tool("add", {"properties": {"n": SMALL}, "required": ["n"], "additionalProperties": False}),
]
PARAMETERS = {t["function"]["name"]: t["function"].get("parameters", closed()) for t in TOOLS}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def check_calls(choice: dict[str, Any]) -> list[str]:
    """Check that a choice is whole and valid calls, and return the tools' names."""
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        schema = PARAMETERS[call["function"]["name"]]
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.Draft202012Validator({"type": "object", **schema}).validate(arguments)
    return [call["function"]["name"] for call in choice["message"]["tool_calls"]]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_function_is_called_once(model: GenAIModel, name: str) -> None:
    rows = [
        {"messages": SPAIN, "tools": TOOLS, "tool_choice": named(name), "max_tokens": 300, **more}
        for more in [{}, *({"temperature": 1.5, "seed": seed} for seed in range(5))]
    ]
    for answer in model.run("llm/v1/chat", rows):
        assert check_calls(answer["choices"][0]) == [name]


def test_a_required_call_comes(model: GenAIModel) -> None:
    rows = [
        {"messages": SPAIN, "tools": TOOLS, "tool_choice": "required", "max_tokens": 600, **more}
        for more in [{}, *({"temperature": 2, "seed": seed} for seed in range(12))]
    ]
    answers = [answer["choices"][0] for answer in model.run("llm/v1/chat", rows)]
    whole = [check_calls(c) for c in answers if c["finish_reason"] != "length"]
    assert len(whole) > 8
    single = model.run("llm/v1/chat", [{**row, "parallel_tool_calls": False} for row in rows])
    assert all(len(check_calls(answer["choices"][0])) == 1 for answer in single)


@pytest.mark.parametrize("choice", ["required", named("add_numbers")], ids=str)
def test_streamed_calls_are_what_whole_calls_are(model: GenAIModel, choice: Any) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 300}
    whole = model.chat(WEATHER, **fields)["choices"][0]
    choices = [
        chunk["choices"][0] for chunk in model.stream_chat(WEATHER, **fields) if chunk["choices"]
    ]
    calls = [call for c in choices for call in c["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    assert [call["function"] for call in calls] == [
        call["function"] for call in whole["message"]["tool_calls"]
    ]
    assert not any(c["delta"].get("content") for c in choices)
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_call_that_a_token_limit_cuts_is_text(model: GenAIModel) -> None:
    choice = model.chat(SPAIN, tools=TOOLS, tool_choice="required", max_tokens=6)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"]
    assert "tool_calls" not in choice["message"]


def test_a_required_call_goes_on_with_its_result(model: GenAIModel) -> None:
    message = model.chat(WEATHER, tools=TOOLS[:1], tool_choice="required")["choices"][0]["message"]
    result = {
        "role": "tool",
        "tool_call_id": message["tool_calls"][0]["id"],
        "content": '{"temperature": 21}',
    }
    answer = model.chat([*WEATHER, message, result], tools=TOOLS[:1])["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert "21" in answer["message"]["content"]


@pytest.mark.parametrize("more", [{"parallel_tool_calls": False}, {"strict": True}], ids=str)
def test_an_enforced_form_leaves_the_model_free_to_answer(
    model: GenAIModel, more: dict[str, Any]
) -> None:
    strict = more.pop("strict", False)
    city = closed(city={"type": "string"})
    tools = [tool("get_weather", city, description="Get the weather in a city.", strict=strict)]
    free = [{"role": "user", "content": "What is the capital of Spain?"}]
    text = model.chat(free, tools=tools, **more)["choices"][0]
    assert text["finish_reason"] == "stop"
    assert (
        text["message"]["content"]
        == model.chat(free, tools=tools)["choices"][0]["message"]["content"]
    )
    call = model.chat(WEATHER, tools=tools, **more)["choices"][0]
    assert check_calls(call) == ["get_weather"]


def test_a_strict_function_s_arguments_match_however_the_model_babbles(model: GenAIModel) -> None:
    color = closed(city={"type": "string", "pattern": "^[a-z]{4}$"})
    tools = [tool("get_weather", color, description="Get the weather in a city.", strict=True)]
    choice = model.chat(WEATHER, tools=tools)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    jsonschema.Draft202012Validator(color).validate(json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tool_choice": "required"}, "tools", "needs tools"),
        ({"tool_choice": named("x"), "tools": TOOLS}, "tool_choice", "not among the tools"),
        (
            {"tool_choice": "required", "tools": TOOLS, "min_tokens": 2},
            "min_tokens",
            "A grammar for tool calls says where the answer ends",
        ),
        (
            {"tool_choice": "required", "tools": TOOLS, "response_format": {"type": "json_object"}},
            "response_format",
            "leaves no room for tool calls",
        ),
        (
            {"tool_choice": "required", "tools": [tool("f", {"type": "array"})]},
            "tools",
            "a JSON schema of an object",
        ),
        (
            {"tool_choice": "required", "tools": [tool("f", {"properties": {"a": {"type": "x"}}})]},
            "tools",
            "Invalid type: x.",
        ),
        (
            {"tools": [tool("f", closed(a={"multipleOf": 10**7}), strict=True)]},
            "tools",
            "common multiple",
        ),
        ({"tools": [tool("f", strict="yes")]}, "tools", "strict, true or false"),
        (
            {
                "tool_choice": "required",
                "tools": [tool(f"f{i}", closed(a={"enum": ["x" * 9000]})) for i in range(20)],
            },
            "tools",
            "more than 131,072 characters",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_enforced_is_refused(
    model: GenAIModel, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        model.chat(SPAIN, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_names_of_every_kind_can_be_enforced(model: GenAIModel) -> None:
    for name in ['with "quotes"', "dotted.name/path", "ünïcode 😀", "back\\slash"]:
        tools = [tool(name, closed(a={"enum": [1, 2]}))]
        choice = model.run(
            "llm/v1/chat",
            [{"messages": SPAIN, "tools": tools, "tool_choice": "required", "temperature": 1}],
        )[0]["choices"][0]
        assert {c["function"]["name"] for c in choice["message"]["tool_calls"]} == {name}


class Written(NamedTuple):
    """What a model wrote, and what is in it."""

    text: str
    content: str
    calls: list[tuple[str, dict[str, Any]]]


CITY = '{"name": "f", "arguments": {"city": "Paris"}}'
PARSED = [
    Written("Hello!", "Hello!", []),
    Written("", "", []),
    Written("  \n ", "  \n ", []),
    Written(f"<|tool_call|>[{CITY}]<|/tool_call|>", "", [("f", {"city": "Paris"})]),
    Written(f"<|tool_call|>[{CITY}]", "", [("f", {"city": "Paris"})]),
    Written(
        f'Sure. <|tool_call|>[{CITY}, {{"name": "g"}}]<|/tool_call|>\n',
        "Sure. ",
        [("f", {"city": "Paris"}), ("g", {})],
    ),
    Written(f"<tool_call>\n{CITY}\n</tool_call>", "", [("f", {"city": "Paris"})]),
    Written(f"\n<tool_call>\n{CITY}\n</tool_call>", "", [("f", {"city": "Paris"})]),
    Written(
        f'Two:<tool_call>{CITY}</tool_call>\n<tool_call>{{"name": "g"}}</tool_call>',
        "Two:",
        [("f", {"city": "Paris"}), ("g", {})],
    ),
    Written(
        '{"name": "f", "parameters": {"x": [1, {"y": "<"}]}}', "", [("f", {"x": [1, {"y": "<"}]})]
    ),
    Written(' \n{"name": "f", "parameters": {}}\n', "", [("f", {})]),
    Written('<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
    Written('{"name": "f", "arguments": "{\\"a\\": 1}"}', "", [("f", {"a": 1})]),
    Written('{"name": "f", "arguments": {"a": "\\ud800é"}}', "", [("f", {"a": "\ud800é"})]),
    *(
        Written(text, text, [])
        for text in [
            '{"name": "unknown", "parameters": {}}',
            '{"name": ["f"], "parameters": {}}',
            '{"name": "f", "parameters": [1]}',
            '{"name": "f", "parameters": "x"}',
            '{"name": "f", "parameters": {"x": NaN}}',
            '{"name": "f", "parameters": {"x": 1}',
            '{"a": 1}',
            "{",
            '{"name": "f", "parameters": ' + "[" * 5000,
            "<tool_call>",
            "<tool_call>f()</tool_call>",
            f"<tool_call>{CITY}</tool_call> and more",
            f"<tool_call>{CITY}</tool_call><tool_call>x</tool_call>",
            "<|tool_call|>[1]<|/tool_call|>",
            "<|tool_call|>[]<|/tool_call|>",
            "a < b <tool <|tool",
        ]
    ),
]


def parse(pieces: list[str]) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    parser = ToolCallParser({"f", "g"})
    text = "".join(parser.add(piece) for piece in pieces)
    rest, calls = parser.finish()
    for call in calls:
        assert call["type"] == "function"
        call["function"]["arguments"].encode()
    found = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
    return text + rest, found


@pytest.mark.parametrize("case", PARSED, ids=lambda case: case.text[:40])
def test_calls_are_found_in_pieces_of_every_size(case: Written) -> None:
    for size in [*range(1, 40), len(case.text) + 1]:
        pieces = [case.text[i : i + size] for i in range(0, len(case.text), size)]
        assert parse(pieces) == (case.content, case.calls)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(PARSED))
def test_calls_are_found_however_the_text_is_split(data: st.DataObject, case: Written) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(case.text)), max_size=12)))
    edges = [0, *cuts, len(case.text)]
    pieces = [case.text[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(pieces) == (case.content, case.calls)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["<", "tool_call>", "<|tool_call|>", "{", "}", " ", "a", "[", '"']))
)
def test_no_text_is_lost(pieces: list[str]) -> None:
    assert parse(pieces) == ("".join(pieces), [])


END = "<|im_end|>"


def byte_level(marks: list[str]) -> Tokenizer:
    """A byte-level vocabulary as Qwen's, with control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator([CITY] * 10, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return tokenizer


class Vocabulary(NamedTuple):
    """A tokenizer, and how a model with it writes calls."""

    marks: list[str]
    shows: Callable[[str], bool]
    example: str


def hermes(text: str) -> bool:
    return text == "<tool_call>"


VOCABULARIES = {
    "Phi-4-mini": Vocabulary(
        ["<|tool_call|>", "<|/tool_call|>"],
        lambda _: False,
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>',
    ),
    "Hermes": Vocabulary(
        ["<tool_call>", "</tool_call>"],
        hermes,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    ),
    "Hermes in plain text": Vocabulary(
        [], hermes, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    ),
    "Llama 3": Vocabulary([], lambda _: False, '{"name": "f", "parameters": {"a": 1}}'),
}
CALLABLE = [
    tool("f", closed(a={"enum": [1, 2]}), strict=True),
    tool("g", closed(b={"enum": ["x"]}), strict=True),
]


def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    end = tokenizer.token_to_id(END)
    assert end is not None
    return GrammarCompiler(tokenizer.to_str(), tokenizer.get_vocab_size(), frozenset([end]))


def babble(
    compiler: GrammarCompiler, tokenizer: Tokenizer, rule: CallRule, shows: Callable[[str], bool]
) -> list[str]:
    """Take random allowed tokens, and return what was written, several times."""

    def control_id(text: str) -> int | None:
        token = tokenizer.token_to_id(text)
        return token if token is not None and compiler.is_control(token) else None

    held = call_grammar(CALLABLE, rule, control_id, shows)
    size = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id(END)
    texts: list[str] = []
    for seed in range(12):
        matcher = compiler.matcher(held)
        random = np.random.default_rng(seed)
        ids: list[int] = []
        while not matcher.done and len(ids) < 400:
            logits = np.zeros(size, dtype=np.float32)
            matcher.mask(logits)
            token = int(random.choice(np.flatnonzero(np.isfinite(logits))))
            matcher.accept(token)
            if token == end:
                break
            ids.append(token)
        texts.append(tokenizer.decode(ids, skip_special_tokens=False))
    return texts


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_can_be_parsed_in_every_form(name: str, parallel: bool) -> None:
    marks, shows, example = VOCABULARIES[name]
    tokenizer = byte_level(marks)
    compiler = compiler_of(tokenizer)
    rule = CallRule(required=True, parallel=parallel)
    counts: set[int] = set()
    for text in babble(compiler, tokenizer, rule, shows):
        content, calls = parse([text])
        assert content == ""
        assert calls
        assert all(c in [("f", {"a": 1}), ("f", {"a": 2}), ("g", {"b": "x"})] for c in calls)
        counts.add(len(calls))
    assert (counts == {1}) == (not parallel or name == "Llama 3")
    rule = CallRule(required=True, name="f", parallel=False)
    texts = babble(compiler, tokenizer, rule, shows)
    assert example in [text.replace('"a":1', '"a": 1') for text in texts]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_free_answers_hold_only_calls_that_can_be_parsed(name: str) -> None:
    marks, shows, example = VOCABULARIES[name]
    tokenizer = byte_level(marks)
    compiler = compiler_of(tokenizer)
    rule = CallRule(required=False, parallel=False)

    def control_id(text: str) -> int | None:
        return tokenizer.token_to_id(text)

    held = call_grammar(CALLABLE, rule, control_id, shows)

    def takes(text: str) -> bool:
        matcher = compiler.matcher(held)
        for token in tokenizer.encode(text).ids:
            if matcher.done or not matcher.allowed()[token]:
                return False
            matcher.accept(token)
        return matcher.done or bool(matcher.allowed()[tokenizer.token_to_id(END)])

    assert takes("")
    assert takes("Hello, <b>you</b>.")
    assert takes(example)
    assert not takes(example.replace('"f"', '"h"'))
    assert not takes(example.replace('"a"', '"b"'))
    if name != "Llama 3":
        assert takes(f"Sure. {example}")
        assert not takes(f"{example} {example}")
    assert not takes(example.replace("1", "1, 2"))
