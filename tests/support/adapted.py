"""Graphs with inputs for adapters, and adapters for them, as Olive and PEFT make them."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIError, GenAIModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "FIELDS",
    "LAYERS",
    "SPAIN",
    "Delta",
    "baked",
    "merged",
    "open_for_adapters",
    "parameters",
    "peft_name",
    "peft_tensors",
    "random_deltas",
    "refused",
    "told",
    "widths",
    "write_adapter",
    "write_peft",
]

Delta = tuple["NDArray[np.float32]", "NDArray[np.float32]"]
"""What an adapter adds to a layer's weights: two factors, ``(in, rank)`` and ``(rank, out)``."""

FORM = "{layer}.lora_{half}.weight"
"""How inputs for adapters are called, by Olive."""

LAYERS = ("model.layers.0.attn.qkv_proj", "model.layers.1.mlp.down_proj")

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
FIELDS: dict[str, Any] = {"messages": SPAIN, "max_tokens": 12}

_onnxruntime: Any = importlib.import_module("onnxruntime")


def told(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def refused(model: Path, tmp_path: Path, adapters: Any, kind: type[GenAIError], says: str) -> None:
    """Check that a model is neither loaded nor saved with adapters, and nothing is left behind."""
    with pytest.raises(kind, match=says) as caught:
        GenAIModel(model, adapters=adapters)
    assert str(tmp_path) not in caught.value.message
    assert caught.value.status in (400, 404)
    with pytest.raises(kind, match=says):
        mlflow_phi3_onnx.save_model(model, tmp_path / "saved", adapters=adapters)
    assert not (tmp_path / "saved").exists()


def widths(folder: Path, layer: str) -> tuple[int, int]:
    """How many numbers go into a layer, and come out."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    return _widths(model.graph, _node(model.graph, layer))


def random_deltas(folder: Path, seed: int, *, rank: int = 4, size: float = 1.5) -> dict[str, Delta]:
    """Invent factors for each of LAYERS, in proportion to what they are added to."""
    random = np.random.default_rng(seed)
    deltas: dict[str, Delta] = {}
    for layer in LAYERS:
        inside, outside = widths(folder, layer)
        a = random.normal(0, size / inside**0.5, (inside, rank)).astype(np.float32)
        deltas[layer] = (a, random.normal(0, size, (rank, outside)).astype(np.float32))
    return deltas


def open_for_adapters(
    source: Path,
    target: Path,
    layers: Sequence[str] = LAYERS,
    *,
    rank: int | None = None,
    form: str = FORM,
) -> Path:
    """Copy a model whose graph then has inputs for adapters, with defaults that change nothing.

    Args:
        source: The model folder.
        target: Where the copy goes.
        layers: The layers that can be adapted.
        rank: The rank that every adapter must have; None leaves it open.
        form: How the inputs are called.
    """
    model = _copy(source, target)
    for layer in layers:
        inside, outside = _widths(model.graph, _node(model.graph, layer))
        a = np.zeros((inside, rank or 0), dtype=np.float32)
        b = np.zeros((rank or 0, outside), dtype=np.float32)
        _add(model.graph, layer, (a, b), form)
        axis = "lora_r" if rank is None else rank
        for half, shape in (("A", [inside, axis]), ("B", [axis, outside])):
            name = form.format(layer=layer, half=half)
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return _finish(model, target)


def baked(source: Path, target: Path, deltas: Mapping[str, Delta]) -> Path:
    """Copy a model that always adds the products of factors, beside its own weights."""
    model = _copy(source, target)
    for layer, delta in deltas.items():
        _add(model.graph, layer, delta)
    return _finish(model, target)


def merged(source: Path, target: Path, deltas: Mapping[str, Delta]) -> Path:
    """Copy a model of exact weights with the products of factors added to them."""
    model = _copy(source, target)
    for layer, (a, b) in deltas.items():
        name = _node(model.graph, layer).input[1]
        (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
        values = numpy_helper.to_array(weight, str(source)) + a @ b
        weight.CopyFrom(numpy_helper.from_array(values, name))
    return _finish(model, target)


def parameters(deltas: Mapping[str, Delta], form: str = FORM) -> dict[str, NDArray[Any]]:
    """An adapter's parameters, by the graph's names."""
    return {
        form.format(layer=layer, half=half): array
        for layer, delta in deltas.items()
        for half, array in zip("AB", delta, strict=True)
    }


def write_adapter(path: Path, named: Mapping[str, NDArray[Any]]) -> Path:
    """Write an adapter as ONNX Runtime does."""
    adapter = _onnxruntime.AdapterFormat()
    value = _onnxruntime.OrtValue.ortvalue_from_numpy
    adapter.set_parameters({name: value(array) for name, array in named.items()})
    adapter.export_adapter(str(path))
    return path


def write_peft(folder: Path, tensors: Mapping[str, NDArray[Any]], **config: Any) -> Path:
    """Write an adapter as PEFT does.

    Args:
        folder: Where it goes.
        tensors: lora_A as ``(rank, in)`` and lora_B as ``(out, rank)``, by PEFT's names. Numbers of
            16 bits without sign are taken for bfloat16.
        config: What differs from a plain LoRA adapter, scaled by 1.
    """
    folder.mkdir(parents=True)
    rank = next((len(t) for name, t in tensors.items() if "lora_A" in name), 1)
    whole = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole), encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        kind = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[array.dtype.name]
        end = len(data) + array.nbytes
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), end]}
        data += np.ascontiguousarray(array).tobytes()
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        len(head).to_bytes(8, "little") + head + data
    )
    return folder


def peft_name(layer: str, half: str) -> str:
    return f"base_model.model.{layer.replace('.attn.', '.self_attn.')}.lora_{half}.weight"


def peft_tensors(deltas: Mapping[str, Delta]) -> dict[str, NDArray[Any]]:
    """An adapter's tensors, by PEFT's names and turned as it has them."""
    return {
        peft_name(layer, half): np.ascontiguousarray(array.T)
        for layer, delta in deltas.items()
        for half, array in zip("AB", delta, strict=True)
    }


def _copy(source: Path, target: Path) -> onnx.ModelProto:
    shutil.copytree(source, target)
    return onnx.load(str(source / "model.onnx"), load_external_data=False)


def _finish(model: onnx.ModelProto, target: Path) -> Path:
    (target / "model.onnx").write_bytes(model.SerializeToString())
    return target


def _node(graph: onnx.GraphProto, layer: str) -> onnx.NodeProto:
    """Find the node that multiplies by a layer's weights."""
    output = f"/{layer.replace('.', '/').replace('layers/', 'layers.')}/MatMul/output_0"
    (node,) = [node for node in graph.node if output in node.output]
    return node


def _widths(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[int, int]:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits":
        return attributes["K"], attributes["N"]
    (weight,) = [tensor for tensor in graph.initializer if tensor.name == node.input[1]]
    inside, outside = weight.dims
    return inside, outside


def _add(graph: onnx.GraphProto, layer: str, delta: Delta, form: str = FORM) -> None:
    """Add to what a layer gives: its input, multiplied by both factors."""
    node = _node(graph, layer)
    output = node.output[0]
    node.output[0] = f"{output}/base"
    names = [form.format(layer=layer, half=half) for half in "AB"]
    graph.initializer.extend(map(numpy_helper.from_array, delta, names))
    more = [
        helper.make_node("MatMul", [node.input[0], names[0]], [f"{output}/A"]),
        helper.make_node("MatMul", [f"{output}/A", names[1]], [f"{output}/B"]),
        helper.make_node("Add", [node.output[0], f"{output}/B"], [output]),
    ]
    place = list(graph.node).index(node) + 1
    for offset, added in enumerate(more):
        graph.node.insert(place + offset, added)
