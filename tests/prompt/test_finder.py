"""Many texts are found in a text as a regular expression of all would find them, but soon."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_phi3_onnx.core.bounds import MAX_ADDED_TOKENS
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.finder import TextFinder
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.edits import edit_json

few = st.text("ab<|\u4e2d", min_size=1, max_size=6)
many = st.text(min_size=1, max_size=3)


@given(st.lists(few | many, max_size=30), st.lists(few | many, max_size=12).map("".join))
def test_the_longest_is_found_at_each_place(texts: list[str], text: str) -> None:
    ordered = sorted(texts, key=len, reverse=True)
    expected = [
        (match.start(), match.group())
        for match in re.finditer("|".join(map(re.escape, ordered)) or "(?!)", text)
    ]
    finder = TextFinder(texts)
    assert [(found.start, found.text) for found in finder.find(text)] == expected
    assert finder.is_in(text) == bool(expected)
    assert finder.replace(text, lambda found: f"[{found}]") == re.sub(
        "|".join(map(re.escape, ordered)) or "(?!)", lambda match: f"[{match.group()}]", text
    )


def test_at_most_all_beginnings_are_looked_at() -> None:
    for count in (16, 17, 300):
        texts = [chr(0x4E00 + i) + "x" for i in range(count)]
        found = TextFinder(texts).find("\u4e00x\u4e00y]-^" + texts[-1])
        assert [text for _, text in found] == [texts[0], texts[-1]]


@pytest.mark.timeout(120)
def test_as_many_control_tokens_as_may_be_with_one_beginning(demo: Path, tmp_path: Path) -> None:
    """Tried one after the other, they would take an hour."""
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    known = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    highest = max(token["id"] for token in known)
    more = [
        {**known[0], "id": highest + i, "content": f"<|<|{chr(0x4E00 + i % 1000)}{i}"}
        for i in range(1, MAX_ADDED_TOKENS - len(known) + 1)
    ]
    edit_json(folder / "tokenizer.json", lambda spec: spec["added_tokens"].extend(more))
    tokenizer = PromptTokenizer(folder)
    text = "<|<|" * 20_000 + more[-1]["content"]
    ids = tokenizer.encode_chat(ChatPrompt(({"role": "user", "content": text},)))
    assert more[-1]["id"] not in ids.tolist()
