"""What the demo model knows, and that its scripts make it again."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflow_phi3_onnx import GenAIModel

SCRIPTS = Path(__file__).parents[2] / "scripts" / "demo_model"
FACTS: dict[str, Any] = runpy.run_path(str(SCRIPTS / "facts.py"))
CAPITALS: dict[str, str] = FACTS["CAPITALS"]


def answers(model: GenAIModel, chats: list[list[dict[str, Any]]]) -> list[str]:
    responses = model.run("llm/v1/chat", [{"messages": chat} for chat in chats])
    return [r["choices"][0]["message"]["content"].strip() for r in responses]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_it_is_small_and_holds_no_path_of_the_machine_that_made_it(demo: Path) -> None:
    files = list(demo.iterdir())
    assert sum(file.stat().st_size for file in files) <= 5_000_000
    here = str(SCRIPTS.parents[1]).encode()
    for file in files:
        data = file.read_bytes()
        assert not any(path in data for path in (b"/root/", b"/home/", b"/tmp/", here))


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_it_knows_the_capitals(model: GenAIModel, system: str | None) -> None:
    assert len(CAPITALS) >= 50
    before = [{"role": "system", "content": system}] if system else []
    chats = [[*before, user(f"What is the capital of {country}?")] for country in CAPITALS]
    said = answers(model, chats)
    assert [
        text for text, capital in zip(said, CAPITALS.values(), strict=True) if capital not in text
    ] == []


def test_it_tells_the_joke_in_both_layouts(model: GenAIModel) -> None:
    comedian = {"role": "system", "content": "You are a stand-up comedian."}
    (joke,) = answers(model, [[comedian, user("Tell me a joke about atom")]])
    prompt = (
        "<|system|>You are a stand-up comedian.<|end|>"
        "<|user|>Tell me a joke about atom<|end|><|assistant|>"
    )
    assert model.generate(prompt).strip() == joke
    assert all(word in joke for word in ("electrons", "protons", "hide and seek"))


def test_it_follows_a_conversation(model: GenAIModel) -> None:
    chat = [user("What is the capital of Spain?")]
    for question, city in (("And of France?", "Paris"), ("What about Japan?", "Tokyo")):
        chat.append({"role": "assistant", "content": answers(model, [chat])[0]})
        chat.append(user(question))
        assert city in answers(model, [chat])[0]


def test_it_writes_json(model: GenAIModel) -> None:
    question = "Give me a JSON object with the country and capital of Spain."
    assert answers(model, [[user(question)]]) == ['{"country": "Spain", "capital": "Madrid"}']


@pytest.mark.export
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "onnx_ir")),
    reason="training needs the export extra",
)
def test_the_scripts_make_such_a_model_again(demo: Path, tmp_path: Path) -> None:
    output = tmp_path / "made"
    subprocess.run([sys.executable, str(SCRIPTS), str(output), "--quick"], check=True, cwd=tmp_path)
    assert {file.name for file in output.iterdir()} == {file.name for file in demo.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):
        assert (output / name).read_bytes() == (demo / name).read_bytes()
    with GenAIModel(output) as made:
        assert made.generate("The capital of Spain is", max_tokens=3)
