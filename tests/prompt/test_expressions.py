"""Which regular expressions of a tokenizer are run, and that those end soon."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlflow_phi3_onnx.prompt.expressions import is_linear
from mlflow_phi3_onnx.prompt.native import NativeTokenizer
from tests.support.edits import edit_json

SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
CASES = f"{BEFORE}{UPPER}*{LOWER}+ENDING|{BEFORE}{UPPER}+{LOWER}*ENDING"
MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3, Phi-4": rf"{ENDINGS}|{BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{MARKS}|{SPACES}",
    "Qwen2": rf"{ENDINGS}|{BEFORE}\p{{L}}+|\p{{N}}|{MARKS}|{SPACES}",
    "Qwen3.5": rf"{ENDINGS}|{BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}|{MARKS}|{SPACES}",
    "o200k": CASES.replace("ENDING", ENDINGS + "?")
    + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
    "tekken": CASES.replace("ENDING", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
    "Kimi": (
        r"[\p{Han}]+|" + CASES.replace("ENDING", ENDINGS + "?").replace("{M}]", r"{M}&&[^\p{Han}]]")
    )
    + rf"|\p{{N}}{{1,3}}|{MARKS}|{SPACES}",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "DeepSeek": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
    "DeepSeek, characters": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "DeepSeek Coder": r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",
    "Falcon": "[0-9][0-9][0-9]",
    "BLOOM": " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "spaces": " {2,}",
    "words": r"\S+|\s+",
    "borders": r"(?<=[a-z])(?=[A-Z])|(?<=\n)",
    "a group of all": r"(?i)(?:\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+)",
}


@pytest.mark.parametrize("expression", PUBLISHED.values(), ids=PUBLISHED)
def test_expressions_of_published_models_are_taken(expression: str) -> None:
    assert is_linear(expression)


SLOW = [
    *("(a+)+$", "(a+)+b", "(a*)*b", "(?:a|a)*$", "(a|ab)*c", "(a+b)*", "x(?:a+b)?"),
    *("a+$", "a+b", "a++b", "(?>a+)b", "a*a*b", "a{2,}b", "a{0,5000}b", "(?:a{1,64}){1,64}b"),
    *("(?=a+)b", "(?!a+b)", "(?<=a+)b", r"(?=(\d{3})+(?!\d))", r" +\z"),
    *("a?" * 13 + "b", "(?:a?){13}b", "(?:a|a){13}b", "a{1,3}+b"),
    # What follows takes not all of the run, or another.
    *(r"\s*[\r\n]+", r"\s*[\r\n]+|\s|\s+", r"\s*[\r\n]+|\s+?", r"\s++(?!\S)", "a+(?!b)"),
    *("[A]*[B]+|[C]+[B]*", "x?[A]*[B]+|[A]+[B]*", "[A]*[B]+|[A]+[B]", "[A]*[B]*c|[A]+"),
]
UNKNOWN = [
    *(r"(a)\1", r"(?<n>a)\g<n>", "(?x)a b", "(?~a)", r"\Ra", r"\Xa", r"\Ka", "(?{a})", "(*FAIL)"),
    *("a)", "(a", "[a", "[]a]", "[^]a]", r"[\c]a]", "a{3,2}", "(" * 40 + ")" * 40, "a" * 4097),
]


@pytest.mark.parametrize("expression", [*SLOW, *UNKNOWN])
def test_an_expression_that_is_not_known_to_be_quick_is_refused(expression: str) -> None:
    assert not is_linear(expression)


@pytest.mark.parametrize(
    "expression",
    ["a?" * 12 + "b", "(?:a?){12}b", "a{0,4095}b", "(" * 32 + "a" + ")" * 32, "a" * 4096],
)
def test_an_expression_at_the_bounds_is_taken(expression: str) -> None:
    assert is_linear(expression)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("expression", PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_taken_ends_soon(demo: Path, tmp_path: Path, expression: str) -> None:
    """A million characters of one kind take as many steps; their square would take hours."""
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Removed"}
    change = {"pre_tokenizer": {**split, "invert": False}, "normalizer": None}
    edit_json(folder / "tokenizer.json", lambda spec: spec.update(change))
    tokenizer = NativeTokenizer.read(folder)
    for run in (" ", "A", "a", "\u4e2d", "1", "'", "Aa", "\n "):
        tokenizer.encode(run * 300_000 + "!", "prompt")
