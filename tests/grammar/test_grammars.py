"""Grammars on their own: what is kept of them, how they are bounded, and who shares them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.grammar import compiler as grammar_module
from mlflow_phi3_onnx.openai.structured import choice, lark, regex, response_format
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.doors import SPAIN
from tests.support.forms import SCHEMAS, SUM, schema_format

if TYPE_CHECKING:
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


def test_the_cache_is_bounded_by_count(compiler: GrammarCompiler) -> None:
    for i in range(100):
        compiler.matcher(regex(f"a{{{i + 1}}}"))
        compiler.matcher(regex("used all the time"))
    assert len(compiler.kept) == grammar_module.MAX_CACHED
    assert "used all the time" in compiler.kept
    assert "a{1}" not in compiler.kept


def test_the_cache_is_bounded_by_size(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "MAX_CACHED_CHARACTERS", 1000)
    for i in range(20):
        compiler.matcher(regex(f"{i}" + "a" * 200))
    assert sum(map(len, compiler.kept)) <= 1000
    compiler.matcher(regex("b" * 2000))
    assert len(compiler.kept) == 1


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
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance

    few = llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False)
    monkeypatch.setattr(grammar_module, "_LIMITS", few)
    held = regex("([a-z ]*e.{6}){2}[.]")
    shared = [walk(compiler, held, seed, 40) for seed in range(30)]
    assert len(set(map(tuple, shared))) > 20
    compiled = 0
    compile_one = compiler.compile

    def count(one: Grammar) -> Any:
        nonlocal compiled
        compiled += 1
        return compile_one(one)

    monkeypatch.setattr(compiler, "compile", count)
    assert shared == [walk(compiler, held, seed, 40) for seed in range(30)]
    assert compiled > 0  # the limit was reached, and matchers started over
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
    assert text == " The capital of Spain is Madrid."
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
