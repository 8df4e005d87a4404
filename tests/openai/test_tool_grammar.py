"""Grammars of tool calls, on vocabularies of every form: what they allow can be parsed."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler
from mlflow_phi3_onnx.openai.structured import response_format
from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.formats.registry import choose_format
from mlflow_phi3_onnx.openai.tools.grammar import ToolCallRule, tool_call_grammar
from tests.support.tool_cases import CITY, closed, parse, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    added = [AddedToken(m, special=m.startswith("["), normalized=False) for m in marks]
    tokenizer.add_tokens(added)
    return tokenizer


class Vocabulary(NamedTuple):
    """Control tokens, what the chat template shows, and a call of a model with both."""

    form: str
    marks: list[str]
    shown: list[str]
    example: str


_HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
_QWEN = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
_QWEN_SHOWN = ["<tool_call>", "<function=", "<parameter="]
_GLM = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
_GEMMA = "<|tool_call>call:f{a:1}<tool_call|>"
VOCABULARIES = {
    "Phi-4-mini": Vocabulary(
        "phi4_mini",
        ["<|tool_call|>", "<|/tool_call|>"],
        [],
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>',
    ),
    "functools": Vocabulary(
        "functools",
        ["<|tool_call|>"],
        ["functools"],
        'functools[{"name": "f", "arguments": {"a": 1}}]',
    ),
    "Hermes": Vocabulary("hermes", ["<tool_call>", "</tool_call>"], ["<tool_call>"], _HERMES),
    "Hermes in plain text": Vocabulary("hermes", [], ["<tool_call>"], _HERMES),
    "Qwen3-Coder": Vocabulary("qwen3_coder", ["<tool_call>", "</tool_call>"], _QWEN_SHOWN, _QWEN),
    "Qwen3-Coder in plain text": Vocabulary("qwen3_coder", [], _QWEN_SHOWN, _QWEN),
    "GLM": Vocabulary("glm4", ["<tool_call>", "</tool_call>"], ["<arg_key>"], _GLM),
    "GLM in plain text": Vocabulary("glm4", [], ["<tool_call>", "<arg_key>"], _GLM),
    "GLM 4.7": Vocabulary(
        "glm4",
        ["<tool_call>", "</tool_call>"],
        ["<arg_key>", "<tool_call>{function-name}<arg_key>"],
        _GLM.replace("\n", ""),
    ),
    "Mistral 7B": Vocabulary(
        "mistral",
        ["[TOOL_CALLS]"],
        [],
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]',
    ),
    "Devstral": Vocabulary(
        "mistral", ["[TOOL_CALLS]", "[ARGS]"], [], '[TOOL_CALLS]f[ARGS]{"a": 1}'
    ),
    "Devstral in plain text": Vocabulary(
        "mistral", [], ["[TOOL_CALLS]", "[ARGS]"], '[TOOL_CALLS]f[ARGS]{"a": 1}'
    ),
    "Mistral Small 3.2": Vocabulary(
        "mistral",
        ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        ["[CALL_ID]"],
        '[TOOL_CALLS]f[CALL_ID]abcdef123[ARGS]{"a": 1}',
    ),
    "Gemma 4": Vocabulary("gemma4", ["<|tool_call>", "<tool_call|>", '<|"|>'], [], _GEMMA),
    "Gemma 4 in plain text": Vocabulary("gemma4", [], ["<|tool_call>"], _GEMMA),
    "LFM2": Vocabulary(
        "lfm2",
        ["<|tool_call_start|>", "<|tool_call_end|>"],
        [],
        "<|tool_call_start|>[f(a=1)]<|tool_call_end|>",
    ),
    "Llama in Python": Vocabulary("pythonic", [], ["[func_name1("], "[f(a=1)]"),
    "Llama 3": Vocabulary("llama3", [], ["ipython"], '{"name": "f", "parameters": {"a": 1}}'),
}
CALLABLE = [
    tool("f", closed(a={"enum": [1, 2]}), strict=True),
    tool("g", closed(b={"enum": ["x"]}), strict=True),
]
CODES = {"type": "string", "pattern": "^[ab]+$", "maxLength": 4}
LONG = {"type": "string", "maxLength": 6}
DEEP = [
    tool(
        "f",
        {
            "type": "object",
            "properties": {
                "a": LONG,
                "n": {"type": "integer", "minimum": 0, "maximum": 99},
                "b": {"type": "boolean"},
                "e": {"enum": ["x", "y z", 3]},
                "o": {
                    **closed(k=LONG, t={"type": ["string", "null"], "maxLength": 2}),
                    "required": ["k"],
                },
                "l": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/codes"},
                    "minItems": 1,
                    "maxItems": 3,
                },
                "p": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]$", "description": "A code."},
                "q": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
                "m": {"type": "string", "pattern": "[0-9]", "minLength": 2, "maxLength": 4},
            },
            "required": ["a", "b", "l"],
            "additionalProperties": False,
            "$defs": {"codes": CODES},
        },
    ),
    tool("g"),
    tool("h", {"properties": {"x": {"type": "number", "minimum": 0, "maximum": 1}}}),
]


def markings(vocabulary: Vocabulary, tokenizer: Tokenizer, compiler: GrammarCompiler) -> Markings:
    def control_id(text: str) -> int | None:
        token = tokenizer.token_to_id(text)
        return token if token is not None and compiler.is_control(token) else None

    return Markings(vocabulary.shown.__contains__, control_id)


def grammar_of(
    rule: ToolCallRule, model: Markings, tools: Sequence[dict[str, Any]] = CALLABLE
) -> Grammar:
    held = tool_call_grammar(choose_format("auto", model), tools, rule, model)
    assert held is not None
    return held


def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    end = tokenizer.token_to_id(END)
    assert end is not None
    return GrammarCompiler(tokenizer.to_str(), tokenizer.get_vocab_size(), frozenset([end]))


def babble(compiler: GrammarCompiler, tokenizer: Tokenizer, held: Grammar) -> list[str]:
    """Take random allowed tokens, and return what was written whole, several times."""
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
        if len(ids) < 400:
            texts.append(tokenizer.decode(ids, skip_special_tokens=False))
    return texts


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_can_be_parsed_in_every_form(vocabulary: Vocabulary, parallel: bool) -> None:
    tokenizer = byte_level(vocabulary.marks)
    compiler = compiler_of(tokenizer)
    model = markings(vocabulary, tokenizer, compiler)
    assert found(model) == vocabulary.form
    rule = ToolCallRule(required=True, parallel=parallel)
    counts: set[int] = set()
    for text in babble(compiler, tokenizer, grammar_of(rule, model)):
        content, calls = parse([text], vocabulary.form, CALLABLE)
        assert content == ""
        assert calls
        for called, arguments in calls:
            allowed = {"f": [{"a": 1}, {"a": 2}], "g": [{"b": "x"}]}[called]
            assert json.loads(arguments) in allowed
        counts.add(len(calls))
    assert (counts == {1}) == (not parallel or vocabulary.form == "llama3")
    rule = ToolCallRule(required=True, names=("f",), parallel=False)
    texts = babble(compiler, tokenizer, grammar_of(rule, model))
    texts = [re.sub(r"(?<=\[CALL_ID\])\w+", "abcdef123", text) for text in texts]
    assert vocabulary.example in [text.replace('"a":1', '"a": 1') for text in texts]


def found(model: Markings) -> str | None:
    form = choose_format("auto", model)
    return form.name if form else None


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_required_arguments_match_their_parameters_in_every_form(vocabulary: Vocabulary) -> None:
    tokenizer = byte_level(vocabulary.marks)
    compiler = compiler_of(tokenizer)
    model = markings(vocabulary, tokenizer, compiler)
    called: set[str] = set()
    for text in babble(compiler, tokenizer, grammar_of(ToolCallRule(required=True), model, DEEP)):
        content, calls = parse([text], vocabulary.form, DEEP)
        assert content == ""
        for name, arguments in calls:
            called.add(name)
            schema = next(t for t in DEEP if t["function"]["name"] == name)["function"]
            jsonschema.Draft202012Validator(schema.get("parameters", closed())).validate(
                json.loads(arguments)
            )
    assert called == {"f", "g", "h"}


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_free_answers_hold_only_calls_that_can_be_parsed(vocabulary: Vocabulary) -> None:
    tokenizer = byte_level(vocabulary.marks)
    compiler = compiler_of(tokenizer)
    model = markings(vocabulary, tokenizer, compiler)
    held = grammar_of(ToolCallRule(required=False, parallel=False), model)
    example = vocabulary.example

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
    for name in ('"f"', "f[", "=f", ">f", ":f", "[f"):
        if name in example:
            assert not takes(example.replace(name, name.replace("f", "h"), 1))
    assert not takes(re.sub(r"\ba\b", "c", example))
    assert not takes(example.replace("1", "1, 2"))
    assert not takes(example.replace("1", "3"))
    if vocabulary.form not in ("llama3", "pythonic"):
        assert takes(f"Sure. {example}")
        assert not takes(f"{example} {example}")


@pytest.mark.parametrize("name", ["Qwen3-Coder", "GLM", "Gemma 4", "LFM2"])
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "properties": {}, "minProperties": 1}, "minProperties"),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "anyOf"),
        (closed(**{"a<b": {}, "c:d": {}}), "an argument with such a name"),
    ],
)
def test_what_cannot_be_held_in_other_forms_than_json_is_refused(
    name: str, schema: dict[str, Any], says: str
) -> None:
    vocabulary = VOCABULARIES[name]
    tokenizer = byte_level(vocabulary.marks)
    model = markings(vocabulary, tokenizer, compiler_of(tokenizer))
    with pytest.raises(UnsupportedParameterError) as caught:
        grammar_of(ToolCallRule(required=True), model, [tool("f", schema, strict=True)])
    assert caught.value.param == "tools"
    assert caught.value.message.startswith(f"tools: {says} cannot be enforced in the form")


_PAIR = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}
_CODE = {"type": "string", "pattern": "^[A-Z]{2}", "minLength": 3, "maxLength": 4}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (_PAIR, ["[true,false]", "[true,true,true]"], ["[true]", "[true,true,true,true]", "[1,2]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        (_CODE, ["ABc", "ABcd"], ["AB", "ABcde", "aBcd"]),
        ({"enum": ["x y", 3, None]}, ["x y", "3", "null"], ["x", "4"]),
        ({"type": "string", "pattern": "a/b|c"}, ["xa/b", "c"], ["a", "b"]),
        # What cannot be held is left out, the rest is held.
        ({"type": "string", "pattern": "^a$|^b$", "maxLength": 2}, ["ab"], ["abc"]),
        ({"type": "string", "pattern": "(?=a)", "maxLength": 2**40}, ["bc"], []),
        ({"type": "list", "items": {"type": "BOOLEAN"}, "maxItems": 2**53}, ["[true]"], ["[1]"]),
        ({**_PAIR, "minItems": 2.0, "maxItems": 3.0}, ["[true,false]"], ["[true]"]),
    ],
)
def test_the_bounds_of_values_are_held_at_their_edges(
    schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    vocabulary = VOCABULARIES["Gemma 4"]
    tokenizer = byte_level(vocabulary.marks)
    compiler = compiler_of(tokenizer)
    model = markings(vocabulary, tokenizer, compiler)
    held = grammar_of(ToolCallRule(required=True), model, [tool("f", closed(a=schema))])

    def takes(value: str) -> bool:
        quote = "" if value[0] in "[34n" else '<|"|>'
        matcher = compiler.matcher(held)
        text = f"<|tool_call>call:f{{a:{quote}{value}{quote}}}<tool_call|>"
        for token in tokenizer.encode(text).ids:
            if matcher.done or not matcher.allowed()[token]:
                return False
            matcher.accept(token)
        return True

    assert [value for value in [*good, *bad] if takes(value)] == good


_TWICE = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["Qwen3-Coder", "GLM", "Gemma 4", "LFM2"])
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [1]},
        {"properties": {"a": {"type": "array", "minItems": "x"}}, "required": [1]},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}},
        {"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}] * 2}}},
        {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**_TWICE, "d60": {"type": "null"}}},
    ],
)
def test_odd_schemas_are_refused_or_held_but_break_nothing(
    name: str, schema: dict[str, Any]
) -> None:
    vocabulary = VOCABULARIES[name]
    tokenizer = byte_level(vocabulary.marks)
    compiler = compiler_of(tokenizer)
    model = markings(vocabulary, tokenizer, compiler)
    tools = [tool("f", schema)]
    parse([vocabulary.example], vocabulary.form, tools)
    with suppress(InvalidRequestError, UnsupportedParameterError):
        compiler.matcher(grammar_of(ToolCallRule(required=True), model, tools))


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("parallel", [True, False])
def test_an_answer_s_form_leaves_room_for_calls(name: str, *, parallel: bool) -> None:
    vocabulary = VOCABULARIES[name]
    example = vocabulary.example
    tokenizer = byte_level(vocabulary.marks)
    compiler = compiler_of(tokenizer)
    rule = ToolCallRule(required=False, parallel=parallel)
    model = markings(vocabulary, tokenizer, compiler)
    schema = closed(name={"enum": ["f", 1]})
    answer = response_format({"type": "json_schema", "json_schema": {"schema": schema}})
    assert answer is not None
    tool_format = choose_format("auto", model)
    calls = tool_call_grammar(tool_format, CALLABLE, rule, model, answer)
    assert calls is not None
    parts = (("answer", answer), ("calls", calls))
    held = Grammar("lark", "start: @answer | @calls", "x", parts)

    def takes(text: str) -> bool:
        matcher = compiler.matcher(held)
        for token in tokenizer.encode(text).ids:
            if matcher.done or not matcher.allowed()[token]:
                return False
            matcher.accept(token)
        return matcher.done or bool(matcher.allowed()[tokenizer.token_to_id(END)])

    assert takes('{"name": "f"}')
    assert takes('{"name": 1}')
    assert takes(example)
    for text in ("", "Hi.", '{"name": 2}', f"Sure. {example}", f'{example}{{"name": 1}}'):
        assert not takes(text)
    for called in ('"f"', "f[", "=f", ">f", ":f", "[f"):
        if called in example:
            assert not takes(example.replace(called, called.replace("f", "h"), 1))
    with pytest.raises(UnsupportedParameterError, match="response_format leaves no room") as caught:
        tool_call_grammar(None, CALLABLE, rule, model, answer)
    assert caught.value.param == "response_format"
