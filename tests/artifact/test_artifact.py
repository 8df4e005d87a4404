"""Model folders: what is read of them, what is refused, and what is repaired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidModelError
from mlflow_phi3_onnx.artifact.defects import repairs
from mlflow_phi3_onnx.artifact.folder import read_folder
from tests.support.edits import edit_json

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo model, to be damaged."""
    return Path(shutil.copytree(demo, tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    edit_json(folder / "genai_config.json", edit)


def cut(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])


def test_what_is_read_of_a_folder(demo: Path) -> None:
    read = read_folder(demo)
    config = json.loads((demo / "genai_config.json").read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    assert read.model_type == "phi3"
    assert read.context_length == config["model"]["context_length"] == 4096
    assert read.vocab_size == config["model"]["vocab_size"]
    assert list(read.eos_token_ids) == config["model"]["eos_token_id"]
    assert read.kv_bytes_per_token == (
        2 * decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"] * 4
    )
    layers = range(decoder["num_hidden_layers"])
    assert set(read.graph.inputs) == {
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{i}.{kind}" for i in layers for kind in ("key", "value")),
    }
    assert read.graph.operators["GroupQueryAttention"] == len(layers)
    assert read.graph.attention_windows == {-1}
    ((location, least),) = read.graph.external.items()
    assert 0 < least <= (demo / location).stat().st_size


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "genai_config.json").unlink(), "no genai_config.json"),
    "config is not JSON": (lambda f: cut(f, "genai_config.json", 0.5), "not valid JSON"),
    "config is a list": (lambda f: (f / "genai_config.json").write_text("[]"), "a JSON object"),
    "no model section": (lambda f: change(f, lambda c: c.pop("model")), "no section model"),
    "no decoder": (lambda f: change(f, lambda c: c["model"].pop("decoder")), "model.decoder"),
    "context_length": (
        lambda f: change(f, lambda c: c["model"].update(context_length=0)),
        "model.context_length must be a positive integer",
    ),
    "vocab_size": (
        lambda f: change(f, lambda c: c["model"].update(vocab_size="x")),
        "model.vocab_size must be a positive integer",
    ),
    "eos": (
        lambda f: change(f, lambda c: c["model"].update(eos_token_id="x")),
        "model.eos_token_id must be",
    ),
    "beams": (
        lambda f: change(f, lambda c: c["search"].update(num_beams=4)),
        "search.num_beams is 4",
    ),
    "no graph": (lambda f: (f / "model.onnx").unlink(), "has no model.onnx"),
    "empty graph": (lambda f: cut(f, "model.onnx", 0), "model.onnx is not a whole ONNX model"),
    "half a graph": (lambda f: cut(f, "model.onnx", 0.5), "model.onnx is not a whole ONNX model"),
    "garbage graph": (
        lambda f: (f / "model.onnx").write_bytes(b"This is a README, not a graph."),
        "model.onnx is not",
    ),
    "graph elsewhere": (
        lambda f: change(f, lambda c: c["model"]["decoder"].update(filename="../model.onnx")),
        "leads out of the model folder",
    ),
    "no weights": (lambda f: (f / "model.onnx.data").unlink(), "has no model.onnx.data"),
    "half the weights": (
        lambda f: cut(f, "model.onnx.data", 0.5),
        "model.onnx.data is cut short: it has",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no tokenizer config": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        "no tokenizer_config.json",
    ),
}

# These need the runtime or the tokenizer to be found: a save does not load them.
DAMAGE_AT_LOAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half a tokenizer": (lambda f: cut(f, "tokenizer.json", 0.5), "tokenizer.json is not valid"),
    "wrong vocabulary": (
        lambda f: change(f, lambda c: c["model"].update(vocab_size=1000)),
        "vocab_size|does not fit",
    ),
    "wrong head size": (
        lambda f: change(f, lambda c: c["model"]["decoder"].update(head_size=16)),
        "does not fit its graph",
    ),
    "unknown setting": (
        lambda f: change(f, lambda c: c["search"].update(foo=1)),
        "a value that onnxruntime-genai does not accept",
    ),
    "provider that is not there": (
        lambda f: change(
            f,
            lambda c: c["model"]["decoder"]["session_options"].update(
                provider_options=[{"cuda": {}}]
            ),
        ),
        "execution provider",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_neither_saved_nor_loaded(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(folder)
    with pytest.raises(InvalidModelError, match=says) as caught:
        GenAIModel(folder)
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(InvalidModelError, match=says):
        mlflow_phi3_onnx.save_model(folder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(("damage", "says"), DAMAGE_AT_LOAD.values(), ids=DAMAGE_AT_LOAD)
def test_damage_that_only_loading_finds(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(folder)
    with pytest.raises(InvalidModelError, match=says) as caught:
        GenAIModel(folder)
    assert str(tmp_path) not in caught.value.message


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"^There is no folder at the path '"):
        read_folder(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidModelError, match="There is a file at the path"):
        read_folder(tmp_path / "file")


def test_a_parent_folder_names_the_models_inside_it(demo: Path, tmp_path: Path) -> None:
    for name in ("cpu/int4", "cuda"):
        shutil.copytree(demo, tmp_path / name)
    with pytest.raises(InvalidModelError, match="give one of them: cpu/int4, cuda"):
        read_folder(tmp_path)
    for number in range(20):
        (tmp_path / f"m{number:02}").mkdir()
        (tmp_path / f"m{number:02}" / "genai_config.json").touch()
    with pytest.raises(InvalidModelError, match=r"m09 and 10 more\.$"):
        read_folder(tmp_path)


def test_the_sliding_window_defect_is_repaired(folder: Path) -> None:
    window = {
        "window_size": 2047,
        "slide_key_value_cache": False,
        "slide_inputs": False,
        "layers": [],
    }
    assert repairs(read_folder(folder)) == {}
    change(folder, lambda c: c["model"]["decoder"].update(sliding_window=window))
    assert repairs(read_folder(folder))
    with GenAIModel(folder) as model:
        response = model.complete("a " * 2100, max_tokens=4, min_tokens=4)
    assert response["usage"]["prompt_tokens"] > 2063
    assert response["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("loop", ["genai", "slots"])
def test_end_ids_that_the_vocabulary_has_not_are_left_out(
    demo: Path, folder: Path, loop: str
) -> None:
    change(folder, lambda c: c["model"]["eos_token_id"].append(99999))
    asked = ({"regex": "[a-z]{3,9}"}, {"min_tokens": 9}, {"temperature": 1, "seed": 3}, {})
    answers: list[list[str]] = []
    for path in (demo, folder):
        with GenAIModel(path, model_config={"loop": loop}) as model:
            prompts = ["The capital of Spain is", "I am", "a"]
            answers += [model.generate(prompts, max_tokens=12, **fields) for fields in asked]
    assert answers[: len(asked)] == answers[len(asked) :]


def test_a_prompt_that_ends_with_the_pad_token_keeps_it(demo: Path) -> None:
    # onnxruntime-genai takes trailing pad ids for padding, and answers to the text before them.
    with GenAIModel(demo) as model:
        plain = model.complete("The capital", max_tokens=3, logprobs=5)
        ended = model.complete("The capital<|endoftext|>", max_tokens=3, logprobs=5)
    assert ended["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + 1
    assert ended["choices"][0]["logprobs"] != plain["choices"][0]["logprobs"]
