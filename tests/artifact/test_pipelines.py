"""Decoders that are several graphs, as models for NPUs are: they run, and every file is checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import onnx
import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, InvalidRequestError, save_model
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.flavor.inspect import inspect_model, render
from tests.support import tiny
from tests.support.edits import edit_json
from tests.support.raw_loop import RawLoop

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = ["embeddings.onnx", "transformer.onnx", "lm_head.onnx"]
PROMPTS = [f"{'The capital of Spain is Madrid. ' * i}The capital of Italy is" for i in range(4)]


@pytest.fixture(scope="module")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pipeline(tmp_path_factory.mktemp("pipeline") / "model", demo)


def test_its_answers_are_those_of_onnxruntime_genai(folder: Path, tmp_path: Path) -> None:
    raw = RawLoop(folder)
    wanted = [raw(prompt, 12) for prompt in PROMPTS]
    save_model(folder, tmp_path / "saved", task="text-generation")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    params = {"max_tokens": 12}
    assert [loaded.predict({"prompt": p}, params=params)[0] for p in PROMPTS] == wanted
    with GenAIModel(folder) as model:
        assert model.generate(PROMPTS, max_tokens=12) == wanted
        biased = [model.generate(p, max_tokens=12, logit_bias={"5": 0}) for p in PROMPTS]
    assert biased == wanted


def test_inspect_says_so(folder: Path, demo: Path) -> None:
    report = inspect_model(str(folder), load=True)
    reason = "its decoder is a pipeline of several graphs"
    assert report["decoder_files"] == FILES
    assert report["variants"][0]["why_not_slots"] == reason
    assert report["loaded"] == {"loop": "genai", "why_not_slots": reason, "computes_together": True}
    assert "embeddings.onnx then transformer.onnx then lm_head.onnx" in render(report)
    whole = inspect_model(str(demo))
    for fact in ("parameters", "precision", "memory"):
        assert report[fact] == whole[fact]
    with pytest.raises(InvalidRequestError, match=reason):
        GenAIModel(folder, model_config={"loop": "slots"})


def stage(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda config: change(config["model"]["decoder"]["pipeline"][0])


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a stage's file is missing": (
        stage(lambda stages: stages["lm_head"].update(filename="gone.onnx")),
        r"no gone\.onnx \(.*model\.decoder\.pipeline\[0\]\.lm_head\.filename\)",
    ),
    "it leads out": (
        stage(lambda stages: stages["lm_head"].update(filename="../lm_head.onnx")),
        r"pipeline\[0\]\.lm_head\.filename leads out of the model folder",
    ),
    "no stage has a file": (
        stage(lambda stages: [one.pop("filename") for one in stages.values()]),
        r"model\.decoder\.filename must name the graph, or the graphs in pipeline",
    ),
    "no stages": (
        lambda config: config["model"]["decoder"].update(pipeline=[]),
        r"model\.decoder\.filename must name the graph, or the graphs in pipeline",
    ),
    "native code": (
        stage(lambda s: s["lm_head"].update(session_options={"custom_ops_library": "a.so"})),
        "names a custom_ops_library",
    ),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_what_the_configuration_names_is_checked(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    edit_json(copy / "genai_config.json", change)
    with pytest.raises(InvalidModelError, match=says):
        save_model(copy, tmp_path / "saved")


def test_weights_beside_a_stage_are_checked(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "head").mkdir()
    onnx.save(
        onnx.load(copy / "lm_head.onnx"),
        copy / "head" / "lm_head.onnx",
        save_as_external_data=True,
        location="weights.data",
        size_threshold=0,
    )
    move = stage(lambda stages: stages["lm_head"].update(filename="head/lm_head.onnx"))
    edit_json(copy / "genai_config.json", move)
    assert "head/weights.data" in read_folder(copy).native_files
    with GenAIModel(copy) as model:
        assert model.generate(PROMPTS[0], max_tokens=4) == RawLoop(folder)(PROMPTS[0], 4)
    weights = copy / "head" / "weights.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidModelError, match=r"head/weights\.data is cut short"):
        read_folder(copy)


@pytest.mark.parametrize(
    ("name", "embedded", "says"),
    [
        ("npu.bin", 0, None),
        ("gone.bin", 0, r"no gone\.bin \(head\.onnx: external data\)"),
        ("../npu.bin", 0, r"external data leads out of the model folder"),
        ("", 0, r"external data leads out of the model folder"),
        ("\xff compiled", 1, None),
    ],
)
def test_what_a_compiler_has_made_for_an_npu_is_checked(
    folder: Path, tmp_path: Path, name: str, embedded: int, says: str | None
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "npu.bin").write_bytes(b"compiled")
    graph = onnx.load(copy / "lm_head.onnx")
    content = name.encode("latin-1")
    node = onnx.helper.make_node("EPContext", [], [], domain="com.microsoft")
    node.attribute.append(onnx.helper.make_attribute("ep_cache_context", content))
    node.attribute.append(onnx.helper.make_attribute("embed_mode", embedded))
    graph.graph.node.append(node)
    onnx.save(graph, copy / "head.onnx")
    rename = stage(lambda stages: stages["lm_head"].update(filename="head.onnx"))
    edit_json(copy / "genai_config.json", rename)
    if says is None:
        assert ("npu.bin" in read_folder(copy).native_files) == (not embedded)
        return
    with pytest.raises(InvalidModelError, match=says):
        read_folder(copy)
