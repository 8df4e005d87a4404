"""Grammars on their own: what is kept of them, how they are bounded, and who shares them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.grammar import compiler as grammar_module
from mlflow_phi3_onnx.grammar.schema_bounds import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_EXPRESSIONS,
    MAX_MULTIPLE,
    MAX_PATTERN_PROPERTIES,
    schema_text,
)
from mlflow_phi3_onnx.openai.structured import choice, lark, regex, response_format
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.doors import SPAIN
from tests.support.forms import SCHEMAS, SUM, schema_format

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_phi3_onnx.core.request import Grammar
    from mlflow_phi3_onnx.grammar.compiler import GrammarCompiler


@pytest.fixture
def compiler(demo: Path) -> GrammarCompiler:
    tokenizer = PromptTokenizer(demo)
    folder = read_folder(demo)
    ends = frozenset(folder.eos_token_ids)
    made = tokenizer.grammars(folder.vocab_size, ends)
    assert tokenizer.grammars(folder.vocab_size, ends) is made
    return made


@pytest.fixture
def compiled(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the grammars that are compiled, as they are."""
    texts: list[str] = []
    compile_one = compiler.compile

    def watched(one: Grammar) -> Any:
        texts.append(one.text)
        return compile_one(one)

    monkeypatch.setattr(compiler, "compile", watched)
    return texts


def test_the_cache_is_bounded_by_count(compiler: GrammarCompiler, compiled: list[str]) -> None:
    for i in range(100):
        compiler.matcher(regex("used all the time"))
        compiler.matcher(regex(f"a{{{i + 1}}}"))
    last = [f"a{{{i + 1}}}" for i in range(100 - grammar_module.MAX_CACHED + 1, 100)]
    assert compiler.kept == [*last[:-1], "used all the time", last[-1]]
    assert compiled.count("used all the time") == 1
    compiler.matcher(regex(last[0]))
    compiler.matcher(regex("a{1}"))
    assert compiled.count(last[0]) == 1
    assert compiled.count("a{1}") == 2


def test_the_cache_is_bounded_by_size(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "MAX_CACHED_CHARACTERS", 1000)
    for i in range(20):
        compiler.matcher(regex(f"{i}" + "a" * 200))
    assert sum(map(len, compiler.kept)) <= 1000
    compiler.matcher(regex("b" * 2000))
    assert len(compiler.kept) == 1


def test_the_cache_holds_as_many_characters_as_it_may(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "MAX_CACHED_CHARACTERS", 10)
    for text in ("abc", "defghij"):
        compiler.matcher(regex(text))
    assert compiler.kept == ["abc", "defghij"]
    compiler.matcher(regex("k"))
    assert compiler.kept == ["defghij", "k"]


def test_a_bad_grammar_is_not_kept(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError):
        compiler.matcher(regex("(a"))
    assert compiler.kept == []


def walk(compiler: GrammarCompiler, held: Grammar, seed: int, steps: int = 3000) -> list[int]:
    """Take random allowed tokens until the grammar is at its end."""
    matcher = compiler.matcher(held)
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    while not matcher.done and len(tokens) < steps:
        logits = np.zeros(compiler.mask_size * 32, dtype=np.float32)
        matcher.mask(logits)
        tokens.append(int(random.choice(np.flatnonzero(np.isfinite(logits)))))
        matcher.accept(tokens[-1])
        if tokens[-1] in compiler.eos:
            break
    return tokens


def test_no_answer_fails_because_others_used_up_the_shared_states(
    compiler: GrammarCompiler, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance

    few = llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False)
    monkeypatch.setattr(grammar_module, "_LIMITS", few)
    held = regex("([a-z ]*e.{6}){2}[.]")
    shared = [walk(compiler, held, seed, 40) for seed in range(30)]
    assert len(set(map(tuple, shared))) > 20
    compiled.clear()
    assert shared == [walk(compiler, held, seed, 40) for seed in range(30)]
    assert compiled  # the limit was reached, and matchers started over
    fresh: list[list[int]] = []
    for seed in range(30):
        compiler.drop(held)
        fresh.append(walk(compiler, held, seed, 40))
    assert shared == fresh


def test_a_grammar_that_gets_too_complex_fails_its_row_alone(model: GenAIModel) -> None:
    bad = "[a-z]{3}(((a{1000}){1000}){1000})"
    rows: list[dict[str, Any]] = [{"max_tokens": 20}, {"regex": bad, "max_tokens": 20}]
    results: dict[int, Any] = {}

    def ask(number: int) -> None:
        try:
            results[number] = model.chat(SPAIN, **rows[number])
        except InvalidRequestError as error:
            results[number] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = results[0]["choices"][0]["message"]["content"]
    assert text == "The capital of Spain is Madrid."
    assert isinstance(results[1], InvalidRequestError)
    assert results[1].param == "regex"
    assert results[1].message.startswith("The completion cannot go on within regex: ")


def test_threads_share_a_compiler(compiler: GrammarCompiler) -> None:
    held = [response_format(schema_format(schema)) for schema in SCHEMAS.values()]
    forms = [*(form for form in held if form), lark(SUM), choice(["a", "b"])]
    expected = [walk(compiler, form, 1) for form in forms]
    seen: list[list[list[int]]] = []

    def work() -> None:
        seen.append([walk(compiler, form, 1) for form in forms])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 8


def nested(count: int, join: str) -> dict[str, Any]:
    """Expressions that one string must all match, each beside the schema of the next."""
    schema: dict[str, Any] = {"pattern": "0"}
    for number in range(1, count):
        schema = {"pattern": str(number), join: [{"type": "null"}, schema]}
    return schema


def referring(count: int) -> dict[str, Any]:
    links = {f"n{i}": {"$ref": f"#/$defs/n{i + 1}", "format": "uri"} for i in range(1, count)}
    return {"$defs": {**links, f"n{count}": {"minLength": 1}}, "$ref": "#/$defs/n1"}


def levels(count: int) -> dict[str, Any]:
    schema: Any = {}
    for _ in range(count - 1):
        schema = [schema]
    return {"enum": schema}


def characters(count: int) -> dict[str, Any]:
    schema = {"const": ""}
    return {"const": "x" * (count - len(schema_text(schema, "s")))}


EDGES: dict[str, tuple[Callable[[int], dict[str, Any]], int, str]] = {
    "anyOf": (lambda n: nested(n, "anyOf"), MAX_EXPRESSIONS, "match more than 10 expressions"),
    "oneOf": (lambda n: nested(n, "oneOf"), MAX_EXPRESSIONS, "match more than 10 expressions"),
    "allOf": (
        lambda n: {"allOf": [{"pattern": str(i)} for i in range(n)]},
        MAX_EXPRESSIONS,
        "match more than 10 expressions",
    ),
    "$ref": (referring, MAX_EXPRESSIONS, "match more than 10 expressions"),
    "one string's own": (
        lambda n: (
            {"pattern": "a", "format": "uri", "minLength": 1, "maxLength": 2}
            | {"allOf": [{"pattern": "b"}] * (n - 3)}
        ),
        MAX_EXPRESSIONS,
        "match more than 10 expressions",
    ),
    "levels": (levels, MAX_DEPTH - 1, "nested more than 64 levels deep"),
    "characters": (characters, MAX_CHARACTERS, "more than 65,536 characters"),
    "patterns": (
        lambda n: {
            "properties": {"a": {"patternProperties": dict.fromkeys(map(str, range(n)), True)}}
        },
        MAX_PATTERN_PROPERTIES,
        "more than 16 patternProperties",
    ),
    "multiples": (lambda n: {"multipleOf": n}, MAX_MULTIPLE, "common multiple is above 20,000"),
    "a fraction's multiples": (
        lambda n: {"allOf": [{"multipleOf": 0.5}, {"multipleOf": n / 2}]},
        MAX_MULTIPLE,
        "common multiple is above 20,000",
    ),
}


@pytest.mark.parametrize(("schema", "most", "says"), EDGES.values(), ids=EDGES)
def test_a_schema_may_cost_as_much_and_no_more(
    schema: Callable[[int], dict[str, Any]], most: int, says: str
) -> None:
    assert schema_text(schema(most), "response_format")
    with pytest.raises(InvalidRequestError, match=says) as caught:
        schema_text(schema(most + 1), "response_format")
    assert caught.value.param == "response_format"


def test_schemas_side_by_side_do_not_add_up() -> None:
    one = {"allOf": [{"pattern": str(i)} for i in range(MAX_EXPRESSIONS)]}
    for schema in (
        {"properties": {"a": one, "b": one}},
        {"anyOf": [one, one]},
        {"oneOf": [one, one]},
        {"items": one, "$defs": {"b": one}},
    ):
        assert schema_text(schema, "response_format")
    for joined in ({"anyOf": [one], "oneOf": [one]}, {"anyOf": [one], "pattern": "a"}):
        with pytest.raises(InvalidRequestError, match="match more than 10 expressions"):
            schema_text(joined, "response_format")
