"""Grammars of tool calls, on vocabularies of every form: what they allow can be parsed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlflow_phi3_onnx.core.request import Grammar
from mlflow_phi3_onnx.errors import UnsupportedParameterError
from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler
from mlflow_phi3_onnx.openai.structured import response_format
from mlflow_phi3_onnx.openai.tools.formats.base import Markings
from mlflow_phi3_onnx.openai.tools.formats.registry import choose_format
from mlflow_phi3_onnx.openai.tools.grammar import ToolCallRule, tool_call_grammar
from tests.support.tool_cases import CITY, closed, parse, tool

if TYPE_CHECKING:
    from collections.abc import Callable

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


def llama3(text: str) -> bool:
    return text == "ipython"


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
    "Llama 3": Vocabulary([], llama3, '{"name": "f", "parameters": {"a": 1}}'),
}
CALLABLE = [
    tool("f", closed(a={"enum": [1, 2]}), strict=True),
    tool("g", closed(b={"enum": ["x"]}), strict=True),
]


def grammar_of(rule: ToolCallRule, model: Markings) -> Grammar:
    held = tool_call_grammar(choose_format("auto", model), CALLABLE, rule, model)
    assert held is not None
    return held


def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    end = tokenizer.token_to_id(END)
    assert end is not None
    return GrammarCompiler(tokenizer.to_str(), tokenizer.get_vocab_size(), frozenset([end]))


def babble(
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
    rule: ToolCallRule,
    shows: Callable[[str], bool],
) -> list[str]:
    """Take random allowed tokens, and return what was written, several times."""

    def control_id(text: str) -> int | None:
        token = tokenizer.token_to_id(text)
        return token if token is not None and compiler.is_control(token) else None

    held = grammar_of(rule, Markings(shows, control_id))
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
    rule = ToolCallRule(required=True, parallel=parallel)
    counts: set[int] = set()
    for text in babble(compiler, tokenizer, rule, shows):
        content, calls = parse([text])
        assert content == ""
        assert calls
        for called, arguments in calls:
            allowed = {"f": [{"a": 1}, {"a": 2}], "g": [{"b": "x"}]}[called]
            assert json.loads(arguments) in allowed
        counts.add(len(calls))
    assert (counts == {1}) == (not parallel or name == "Llama 3")
    rule = ToolCallRule(required=True, name="f", parallel=False)
    texts = babble(compiler, tokenizer, rule, shows)
    assert example in [text.replace('"a":1', '"a": 1') for text in texts]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_free_answers_hold_only_calls_that_can_be_parsed(name: str) -> None:
    marks, shows, example = VOCABULARIES[name]
    tokenizer = byte_level(marks)
    compiler = compiler_of(tokenizer)
    rule = ToolCallRule(required=False, parallel=False)

    def control_id(text: str) -> int | None:
        return tokenizer.token_to_id(text)

    held = grammar_of(rule, Markings(shows, control_id))

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


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("parallel", [True, False])
def test_an_answer_s_form_leaves_room_for_calls(name: str, *, parallel: bool) -> None:
    marks, shows, example = VOCABULARIES[name]
    tokenizer = byte_level(marks)
    compiler = compiler_of(tokenizer)
    rule = ToolCallRule(required=False, parallel=parallel)
    model = Markings(shows, tokenizer.token_to_id)
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
    assert not takes(example.replace('"f"', '"h"'))
    with pytest.raises(UnsupportedParameterError, match="response_format leaves no room") as caught:
        tool_call_grammar(None, CALLABLE, rule, model, answer)
    assert caught.value.param == "response_format"
