"""The slots loop's first run: what rounding does is taken, and a graph wired wrongly is not."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_phi3_onnx import GenAIModel, InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Edit: TypeAlias = Callable[[onnx.GraphProto, list[onnx.NodeProto]], None]

KEY, VALUE, LENGTHS, LONGEST = 3, 4, 5, 6
"""Which inputs of GroupQueryAttention are the past's keys and values, and its lengths less one."""


def edited(demo: Path, tmp_path: Path, edit: Edit) -> Path:
    """Copy the demo model, with another graph."""
    folder = shutil.copytree(demo, tmp_path / "model")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model.graph, [n for n in model.graph.node if n.op_type == "GroupQueryAttention"])
    onnx.save(model, folder / "model.onnx")
    return folder


def swap(one: int, other: int) -> Edit:
    """Give two layers each other's keys."""

    def edit(_: onnx.GraphProto, attention: list[onnx.NodeProto]) -> None:
        first, second = attention[one].input, attention[other].input
        first[KEY], second[KEY] = second[KEY], first[KEY]

    return edit


def exchange(layer: int) -> Edit:
    """Give a layer its values as keys, and its keys as values."""

    def edit(_: onnx.GraphProto, attention: list[onnx.NodeProto]) -> None:
        inputs = attention[layer].input
        inputs[KEY], inputs[VALUE] = inputs[VALUE], inputs[KEY]

    return edit


def shift(by: int) -> Edit:
    """Move every token's position."""

    def edit(graph: onnx.GraphProto, attention: list[onnx.NodeProto]) -> None:
        graph.initializer.append(helper.make_tensor("by", TensorProto.INT32, [1], [by]))
        lengths = attention[0].input[LENGTHS]
        _insert(graph, [helper.make_node("Add", [lengths, "by"], ["moved"])], lengths)
        for node in attention:
            node.input[LENGTHS] = "moved"

    return edit


def longest_of_all(graph: onnx.GraphProto, attention: list[onnx.NodeProto]) -> None:
    """Take every sequence for as long as the longest of its batch."""
    graph.initializer.append(helper.make_tensor("zero", TensorProto.INT32, [1], [0]))
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT32, [1], [1]))
    lengths, longest = attention[0].input[LENGTHS], attention[0].input[LONGEST]
    nodes = [
        helper.make_node("Sub", [longest, "one"], ["last"]),
        helper.make_node("Mul", [lengths, "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "last"], ["moved"]),
    ]
    _insert(graph, nodes, lengths, longest)
    for node in attention:
        node.input[LENGTHS] = "moved"


def round_by_height(tile: int, difference: float) -> Edit:
    """Make logits differ by a part of themselves where a run has fewer tokens than a tile."""

    def edit(graph: onnx.GraphProto, _: list[onnx.NodeProto]) -> None:
        (last,) = [node for node in graph.node if "logits" in node.output]
        last.output[:] = ["exact" if name == "logits" else name for name in last.output]
        for name, value in (("few", 1 + difference), ("many", 1.0)):
            graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        graph.initializer.append(helper.make_tensor("tile", TensorProto.INT64, [1], [tile]))
        graph.node.extend(
            [
                helper.make_node("Shape", ["input_ids"], ["height"], start=1, end=2),
                helper.make_node("Less", ["height", "tile"], ["is_low"]),
                helper.make_node("Where", ["is_low", "few", "many"], ["factor"]),
                helper.make_node("Mul", ["exact", "factor"], ["logits"]),
            ]
        )

    return edit


def mask(value: float) -> Edit:
    """Never let the last ids be chosen."""

    def edit(graph: onnx.GraphProto, _: list[onnx.NodeProto]) -> None:
        (last,) = [node for node in graph.node if "logits" in node.output]
        last.output[:] = ["unmasked" if name == "logits" else name for name in last.output]
        values = np.zeros(2560, dtype=np.float32)
        values[2555:] = value
        graph.initializer.append(numpy_helper.from_array(values, "mask"))
        graph.node.append(helper.make_node("Add", ["unmasked", "mask"], ["logits"]))

    return edit


def _insert(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], *after: str) -> None:
    place = max(i for i, node in enumerate(graph.node) if set(after) & set(node.output))
    for node in reversed(nodes):
        graph.node.insert(place + 1, node)


FAULTS: dict[str, Edit] = {
    "keys of two first layers": swap(0, 1),
    "keys of two last layers": swap(-1, -2),
    "keys of the first and the last": swap(0, -1),
    "keys and values of the first": exchange(0),
    "keys and values of the last": exchange(-1),
    "a position later": shift(1),
    "a position earlier": shift(-1),
    "positions of the longest": longest_of_all,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_is_wired_wrongly_is_refused(demo: Path, tmp_path: Path, fault: str) -> None:
    folder = edited(demo, tmp_path, FAULTS[fault])
    with pytest.raises(InvalidModelError, match=r"otherwise in pieces|does not fit its graph"):
        GenAIModel(folder, model_config={"loop": "slots"})


def test_what_is_changed_for_nothing_is_taken(demo: Path, tmp_path: Path) -> None:
    """The edits that are faults above are none by themselves."""
    with GenAIModel(edited(demo, tmp_path, shift(0)), model_config={"loop": "slots"}) as model:
        assert model.generate("The capital of Spain is", max_tokens=1)


@pytest.mark.parametrize("value", [-np.inf, np.finfo(np.float32).min, -65504.0])
def test_tokens_that_the_graph_masks_are_no_part_of_the_spread(
    demo: Path, tmp_path: Path, value: float
) -> None:
    def both(graph: onnx.GraphProto, attention: list[onnx.NodeProto]) -> None:
        swap(0, 1)(graph, attention)
        mask(value)(graph, attention)

    with GenAIModel(
        edited(demo, tmp_path / "right", mask(value)), model_config={"loop": "slots"}
    ) as model:
        assert model.generate("The capital of Spain is", max_tokens=1) == " Madrid"
    with pytest.raises(InvalidModelError, match="otherwise in pieces"):
        GenAIModel(edited(demo, tmp_path / "wrong", both), model_config={"loop": "slots"})


@pytest.mark.parametrize(
    ("tile", "difference", "taken"),
    [(16, 0.099, True), (16, 0.101, False), (17, 0.039, True), (17, 0.041, False)],
)
def test_kernels_for_few_tokens_may_round_otherwise_than_those_for_many(
    demo: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tile: int,
    difference: float,
    *,
    taken: bool,
) -> None:
    """By a tenth of the spread; by less where all the runs that are compared have 16 tokens."""
    folder = edited(demo, tmp_path, round_by_height(tile, difference))
    with caplog.at_level(logging.INFO, "mlflow_phi3_onnx"):
        GenAIModel(folder, model_config={"loop": "auto"}).close()
    fallen_back = [r.levelname for r in caplog.records if "genai loop, not slots" in r.message]
    assert fallen_back == ([] if taken else ["WARNING"])
