"""A graph changed in memory so that it gives the logits that are wanted, and no others."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_phi3_onnx import GenAIModel, InvalidModelError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.artifact.onnx import chosen_logits
from mlflow_phi3_onnx.artifact.onnx.chosen_logits import FIRST_WANTED, with_chosen_logits
from mlflow_phi3_onnx.runtime.ort import SlotSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def session(folder: Path, chosen: bytes | None) -> SlotSession:
    model = read_folder(folder)
    return SlotSession(
        folder / model.filename,
        chosen=chosen,
        first_wanted=FIRST_WANTED,
        layers=model.layers,
        heads=model.heads,
        head_size=model.head_size,
        element=model.graph.inputs["past_key_values.0.key"],
        slots=3,
        capacity=64,
        threads=1,
    )


def behind(demo: Path, tmp_path: Path, *operators: str) -> Path:
    """Copy the demo model, with operators between its last layer and its logits."""
    folder = shutil.copytree(demo, tmp_path / "model")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = model.graph
    graph.initializer.append(helper.make_tensor("thirty", TensorProto.FLOAT, [], [30.0]))
    (last,) = [node for node in graph.node if "logits" in node.output]
    last.output[:] = ["behind.0"]
    for place, operator in enumerate(operators):
        inputs = [f"behind.{place}", *["thirty"] * (operator in ("Mul", "Div", "Add"))]
        output = "logits" if place == len(operators) - 1 else f"behind.{place + 1}"
        graph.node.append(helper.make_node(operator, inputs, [output]))
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("operators", [(), ("Div", "Tanh", "Mul")], ids=["plain", "soft cap"])
def test_the_logits_that_are_wanted_are_those_of_the_whole(
    demo: Path, tmp_path: Path, operators: tuple[str, ...]
) -> None:
    folder = behind(demo, tmp_path, *operators) if operators else demo
    chosen = with_chosen_logits(folder / "model.onnx")
    assert chosen
    every, some = session(folder, None), session(folder, chosen)
    random = np.random.default_rng(0)
    for count, length in ((1, 1), (1, 9), (2, 5), (3, 1)):
        ids = random.integers(0, some.vocab_size, (count, length))
        whole = every.run(0, ids, [length] * count, length)
        for wanted in range(length + 1):
            logits = some.run(0, ids, [length] * count, wanted)
            assert logits.shape == (count, wanted, some.vocab_size)
            assert np.allclose(logits, whole[:, length - wanted :], rtol=1e-4, atol=1e-4)


def test_nothing_else_of_the_graph_is_changed(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    before = onnx.load(demo / "model.onnx", load_external_data=False)
    before.metadata_props.add(key="made by", value="a test")
    before.opset_import.add(domain="a.test", version=3)
    function = helper.make_function("a.test", "F", ["x"], ["y"], [], before.opset_import[:1])
    before.functions.append(function)
    onnx.save(before, file)
    chosen = with_chosen_logits(file)
    assert chosen
    after = onnx.load_from_string(chosen)
    assert [i.name for i in after.graph.input] == [
        *(i.name for i in before.graph.input),
        FIRST_WANTED,
    ]
    (cut,) = [
        node for node in after.graph.node if node.op_type == "Slice" and FIRST_WANTED in node.input
    ]
    (layer,) = [node for node in after.graph.node if cut.output[0] in node.input]
    layer.input[0] = cut.input[0]
    after.graph.node.remove(cut)
    del after.graph.input[-1], after.graph.initializer[-2:]
    assert after == before


@pytest.mark.parametrize("operators", [("Softmax",), ("Add",), ("Mul", "Softmax")])
def test_a_graph_that_ends_otherwise_gives_all_logits(
    demo: Path, tmp_path: Path, operators: tuple[str, ...]
) -> None:
    """What stands behind the layer may need the other tokens' logits too."""
    assert with_chosen_logits(behind(demo, tmp_path, *operators) / "model.onnx") is None


def test_a_file_that_holds_its_weights_is_not_read(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (demo / "model.onnx").stat().st_size
    monkeypatch.setattr(chosen_logits, "MAX_BYTES", size - 1)
    assert with_chosen_logits(demo / "model.onnx") is None
    monkeypatch.setattr(chosen_logits, "MAX_BYTES", size)
    assert with_chosen_logits(demo / "model.onnx")


def circle(graph: onnx.GraphProto, last: onnx.NodeProto) -> None:
    last.output[:] = ["unused"]
    graph.node.append(helper.make_node("Tanh", ["round"], ["logits"]))
    graph.node.append(helper.make_node("Tanh", ["logits"], ["round"]))


def nothing_in(_: onnx.GraphProto, last: onnx.NodeProto) -> None:
    last.ClearField("input")


def no_operator(_: onnx.GraphProto, last: onnx.NodeProto) -> None:
    last.ClearField("op_type")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("edit", [circle, nothing_in, no_operator])
def test_a_broken_graph_is_refused_by_the_runtime(
    demo: Path, tmp_path: Path, edit: Callable[[onnx.GraphProto, onnx.NodeProto], None]
) -> None:
    folder = shutil.copytree(demo, tmp_path / "model")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (last,) = [node for node in model.graph.node if "logits" in node.output]
    edit(model.graph, last)
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(InvalidModelError, match="invalid model"):
        GenAIModel(folder, model_config={"loop": "slots"})


def test_weights_that_are_links_are_found(demo: Path, tmp_path: Path) -> None:
    """As in a snapshot of the hub's cache."""
    blobs = shutil.copytree(demo, tmp_path / "blobs")
    folder = tmp_path / "snapshots" / "model"
    folder.mkdir(parents=True)
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(f"../../blobs/{blob.name}")
    with GenAIModel(folder, model_config={"loop": "slots"}) as model:
        assert model.generate("The capital of Spain is", max_tokens=1) == " Madrid"
