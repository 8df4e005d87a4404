"""Local folders as sources: which model inside is meant, and what is said where none can be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.models import Model

from mlflow_phi3_onnx import (
    FLAVOR_NAME,
    GenAIError,
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    SourceError,
    SourceNotFoundError,
    log_model,
    save_model,
)

if TYPE_CHECKING:
    from pathlib import Path

# As in microsoft/Phi-3-mini-4k-instruct-onnx.
CPU = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"
VARIANTS = [
    "cpu_and_mobile/cpu-int4-rtn-block-32",
    CPU,
    "cuda/cuda-fp16",
    "cuda/cuda-int4-rtn-block-32",
    "directml/directml-int4-awq-block-128",
]


def link_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).hardlink_to(file)


def source_of(path: Path) -> dict[str, Any]:
    return Model.load(str(path)).flavors[FLAVOR_NAME]["source"]


@pytest.fixture
def published(demo: Path, tmp_path: Path) -> Path:
    """A folder laid out as Microsoft publishes Phi-3, each variant the demo model."""
    folder = tmp_path / "Phi-3-mini-4k-instruct-onnx"
    for name in VARIANTS:
        link_tree(demo, folder / name)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Phi3ForCausalLM"]}))
    (folder / "README.md").write_text("# Phi-3\n")
    (folder / ".gitattributes").touch()
    return folder


def test_a_folder_of_several_models_lists_them(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="several models; choose one with subfolder=") as caught:
        save_model(published, tmp_path / "saved")
    assert f"These folders inside hold one: {', '.join(VARIANTS)}." in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert caught.value.param == "subfolder"
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("subfolder", [CPU, f"{CPU}/", f"./{CPU}", CPU.replace("/", "\\")])
def test_a_subfolder_chooses_one(published: Path, tmp_path: Path, subfolder: str) -> None:
    save_model(published, tmp_path / "saved", subfolder=subfolder)
    assert source_of(tmp_path / "saved") == {"kind": "folder", "subfolder": CPU}
    with GenAIModel(tmp_path / "saved" / "model") as model:
        assert model.complete("The capital of Spain is", max_tokens=3)["usage"]


def test_licence_and_card_of_the_whole_go_along(published: Path, tmp_path: Path) -> None:
    (published / "LICENSE").write_text("MIT License")
    (published / "README.md").write_text("Of all of them.")
    (published / CPU / "README.md").write_text("Of this one.")
    save_model(published, tmp_path / "saved", subfolder=CPU)
    assert (tmp_path / "saved" / "model" / "LICENSE").read_text() == "MIT License"
    assert (tmp_path / "saved" / "model" / "README.md").read_text() == "Of this one."


def test_a_subfolder_may_hold_one_model_further_down(published: Path, tmp_path: Path) -> None:
    save_model(published, tmp_path / "saved", subfolder="directml")
    assert source_of(tmp_path / "saved")["subfolder"] == "directml/directml-int4-awq-block-128"


def test_a_subfolder_with_several_lists_its_own(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cuda/cuda-fp16, cuda/cuda-int4-rtn-block-32") as caught:
        save_model(published, tmp_path / "saved", subfolder="cuda")
    assert "cpu" not in caught.value.message


def test_the_only_model_inside_is_taken(demo: Path, tmp_path: Path) -> None:
    link_tree(demo, tmp_path / "parent" / "cpu" / "int4")
    save_model(tmp_path / "parent", tmp_path / "saved")
    assert source_of(tmp_path / "saved") == {"kind": "folder", "subfolder": "cpu/int4"}


def test_a_model_at_the_top_is_the_one_that_is_meant(demo: Path, tmp_path: Path) -> None:
    link_tree(demo, tmp_path / "model")
    link_tree(demo, tmp_path / "model" / "older")
    save_model(tmp_path / "model", tmp_path / "saved")
    assert source_of(tmp_path / "saved") == {"kind": "folder"}


def test_a_subfolder_that_is_not_there_lists_what_is(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"has no subfolder 'cpu-int4'\..*cuda/cuda-fp16"):
        save_model(published, tmp_path / "saved", subfolder="cpu-int4")


@pytest.mark.parametrize("subfolder", ["..", "cpu/../..", "/etc", "C:\\models", 7])
def test_a_subfolder_that_leads_out_is_refused(
    published: Path, tmp_path: Path, subfolder: Any
) -> None:
    with pytest.raises(InvalidRequestError, match="subfolder must be") as caught:
        save_model(published, tmp_path / "saved", subfolder=subfolder)
    assert caught.value.param == "subfolder"


def test_hidden_folders_hold_no_models(demo: Path, tmp_path: Path) -> None:
    link_tree(demo, tmp_path / "parent" / ".cache" / "model")
    link_tree(demo, tmp_path / "parent" / "model")
    save_model(tmp_path / "parent", tmp_path / "saved")
    assert source_of(tmp_path / "saved")["subfolder"] == "model"


NOTHING: dict[str, tuple[list[str], str]] = {
    "empty": ([], "Expected a folder of ONNX Runtime GenAI"),
    "pickled weights": (["config.json", "pytorch_model.bin"], "pickled"),
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter: merge it"),
    "gguf": (["model.gguf"], "llama.cpp"),
    "other onnx": (["model.onnx"], "none that was built for ONNX Runtime GenAI"),
}


@pytest.mark.parametrize(("names", "says"), NOTHING.values(), ids=NOTHING)
def test_a_folder_without_a_model_says_what_was_expected(
    tmp_path: Path, names: list[str], says: str
) -> None:
    (tmp_path / "source").mkdir()
    for name in names:
        (tmp_path / "source" / name).write_text("{}")
    with pytest.raises(InvalidModelError, match=says) as caught:
        save_model(tmp_path / "source", tmp_path / "saved")
    assert "has no genai_config.json" in caught.value.message
    assert "a transformers checkpoint, with config.json and model" in caught.value.message
    assert not (tmp_path / "saved").exists()


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="there is nothing at the path"):
        save_model(tmp_path / "nothing", tmp_path / "saved")
    (tmp_path / "file").touch()
    with pytest.raises(SourceNotFoundError, match="there is a file at the path"):
        save_model(tmp_path / "file", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.usefixtures("tracking")
def test_a_bad_source_leaves_no_logged_model(published: Path) -> None:
    for source in (published, published / "nothing"):
        with pytest.raises(GenAIError):
            log_model(source, name="bad")
    assert mlflow.search_logged_models(experiment_ids=["0"], output_format="list") == []
    info = log_model(published, name="good", subfolder=CPU)
    assert info.flavors[FLAVOR_NAME]["source"] == {"kind": "folder", "subfolder": CPU}


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", ""], ids=["too long", "NUL", "empty"])
def test_a_text_that_can_be_no_path_is_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceNotFoundError, match="there is nothing at the path") as caught:
        save_model(text, tmp_path / "saved")
    assert "xxx" not in caught.value.message


def test_components_are_a_model_and_its_tokenizer(demo: Path, tmp_path: Path) -> None:
    save_model({"model": demo, "tokenizer": None}, tmp_path / "saved")
    assert source_of(tmp_path / "saved")["kind"] == "folder"
    save_model({"cpu": {"model": str(demo)}}, tmp_path / "variants")
    assert source_of(tmp_path / "variants")["variants"] == {"cpu": {"kind": "folder"}}


@pytest.mark.parametrize(
    ("parts", "tokenizer", "param", "says"),
    [
        ({"processor": 1, "feature_extractor": 2}, None, "model", "got 'feature_extractor', 'pr"),
        ({"tokenizer": object()}, object(), "tokenizer", "tokenizer is given twice"),
        ({"tokenizer": object()}, None, "tokenizer", "tokenizer is for a model of transformers"),
    ],
)
def test_components_that_cannot_be_taken_are_named(
    demo: Path, tmp_path: Path, parts: dict[str, Any], tokenizer: Any, param: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        save_model({"model": demo, **parts}, tmp_path / "saved", tokenizer=tokenizer)
    assert caught.value.param == param
