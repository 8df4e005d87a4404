"""Adapters as PEFT saves them: what becomes of them, and which are refused."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mlflow_phi3_onnx
from benchmarks.models import TINY, can_build, checkpoint_folder, model_folder
from mlflow_phi3_onnx import GenAIModel, InvalidModelError
from mlflow_phi3_onnx.artifact.lora.peft import convert_peft
from mlflow_phi3_onnx.artifact.onnx.graph import GraphFacts
from mlflow_phi3_onnx.runtime.adapters import read_facts
from tests.support.adapted import (
    FIELDS,
    LAYERS,
    Delta,
    open_for_adapters,
    parameters,
    peft_name,
    peft_tensors,
    refused,
    told,
    widths,
    write_adapter,
    write_peft,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def _bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (array.view(np.uint32) >> 16).astype(np.uint16)


FORMS: dict[str, tuple[Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]], Any]] = {
    "plain": (lambda tensors: tensors, {}),
    "scaled": (
        lambda tensors: {n: t / 4 if "lora_B" in n else t for n, t in tensors.items()},
        {"lora_alpha": 16},
    ),
    "scaled by the root of its rank": (
        lambda tensors: {n: t / 8 if "lora_B" in n else t for n, t in tensors.items()},
        {"lora_alpha": 16, "use_rslora": True},
    ),
    "named by PEFT in memory": (
        lambda tensors: {n.replace(".weight", ".default.weight"): t for n, t in tensors.items()},
        {},
    ),
}


@pytest.mark.parametrize(("change", "config"), FORMS.values(), ids=FORMS)
def test_an_adapter_of_peft_is_converted(
    folder: Path,
    tmp_path: Path,
    warm: dict[str, Delta],
    answers: dict[str | None, str],
    change: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]],
    config: dict[str, Any],
) -> None:
    peft = write_peft(tmp_path / "peft", change(peft_tensors(warm)), **config)
    mlflow_phi3_onnx.save_model(folder, tmp_path / "saved", adapters={"x": peft})
    written = tmp_path / "saved" / "adapters" / "x.onnx_adapter"
    assert read_facts(written) == {
        name: (1, array.shape) for name, array in parameters(warm).items()
    }
    for model in (
        GenAIModel(folder, adapters={"x": peft}),
        mlflow_phi3_onnx.load_model(tmp_path / "saved"),
    ):
        with model:
            assert told(model.chat(**FIELDS, adapter="x")) == answers["warm"]


@pytest.mark.parametrize("convert", [_bfloat16, lambda array: array.astype(np.float16)])
def test_an_adapter_of_peft_in_16_bits(
    folder: Path, tmp_path: Path, warm: dict[str, Delta], convert: Callable[[Any], Any]
) -> None:
    # Few enough digits that every form has all of them.
    coarse = {layer: (_few_digits(a), _few_digits(b)) for layer, (a, b) in warm.items()}
    exact = write_adapter(tmp_path / "exact", parameters(coarse))
    tensors = {name: convert(tensor) for name, tensor in peft_tensors(coarse).items()}
    peft = write_peft(tmp_path / "peft", tensors)
    with GenAIModel(folder, adapters={"exact": exact, "peft": peft}) as model:
        scored: dict[str, Any] = {"prompt": "The capital", "logprobs": 5, "max_tokens": 4}
        one, other = (model.complete(**scored, adapter=name) for name in ("exact", "peft"))
    assert one["choices"] == other["choices"]


def _few_digits(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return (np.round(array * 16) / 16).astype(np.float32)


def test_a_layer_that_the_graph_has_in_parts(demo: Path, tmp_path: Path) -> None:
    """As the checkpoint of Phi-3 has one for gate and up, and the graph two."""
    parts = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")]
    folder = open_for_adapters(demo, tmp_path / "model", parts)
    random = np.random.default_rng(1)
    inside, outside = widths(demo, parts[0])
    a = random.normal(0, 0.5, (inside, 3)).astype(np.float32)
    b = random.normal(0, 1, (3, 2 * outside)).astype(np.float32)
    whole = {"model.layers.0.mlp.gate_up_proj": (a, b)}
    shared = {parts[0]: (a, b[:, :outside]), parts[1]: (a, b[:, outside:])}
    adapters = {
        "peft": write_peft(tmp_path / "peft", peft_tensors(whole)),
        "exact": write_adapter(tmp_path / "exact", parameters(shared)),
    }
    with GenAIModel(folder, adapters=adapters) as model:
        base, one, other = (told(model.chat(**FIELDS, adapter=n)) for n in (None, *adapters))
    assert one == other != base


NOT_PLAIN: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "not a plain LoRA adapter .it has use_dora"),
    "whole layers": ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
    "its own scales": ({"alpha_pattern": {"q_proj": 3}}, "it has alpha_pattern"),
    "biases": ({"bias": "all"}, "it has bias"),
    "another kind": ({"peft_type": "IA3"}, "its peft_type is another"),
    "no scale": ({"lora_alpha": None}, "is not what PEFT writes"),
    "a scale that is a text": ({"lora_alpha": "nan"}, "lora_alpha must be a number .* a string"),
    "a scale beyond all numbers": ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
}


@pytest.mark.parametrize(("config", "says"), NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_adapters_of_peft_that_cannot_be_converted(
    folder: Path, tmp_path: Path, warm: dict[str, Delta], config: dict[str, Any], says: str
) -> None:
    peft = write_peft(tmp_path / "peft", peft_tensors(warm), **config)
    refused(folder, tmp_path, {"x": peft}, InvalidModelError, says)


def test_tensors_of_peft_that_cannot_be_converted(
    folder: Path, tmp_path: Path, warm: dict[str, Delta]
) -> None:
    tensors = peft_tensors(warm)
    a = np.zeros((4, 8), dtype=np.float32)
    cases: dict[str, dict[str, NDArray[Any]]] = {
        "holds base_model.model.lm_head.weight, which is no": {
            "base_model.model.lm_head.weight": a
        },
        "holds .*down_proj.lora_A.weight, which is no": {
            peft_name("model.layers.1.mlp.down_proj", half): a.reshape(shape)
            for a in (np.zeros(0, dtype=np.float32),)
            for half, shape in (("A", (0, 8)), ("B", (8, 0)))
        },
        "has numbers in .* that are not finite": {n: t * np.inf for n, t in tensors.items()},
        "lora_A and lora_B of .* do not belong together": dict(list(tensors.items())[:1]),
        "changes model.layers.0.self_attn.o_proj, and the graph has no inputs": {
            peft_name("model.layers.0.attn.o_proj", half): values
            for half, values in (("A", a), ("B", a.T))
        },
    }
    for number, (says, wrong) in enumerate(cases.items()):
        peft = write_peft(tmp_path / str(number), wrong)
        refused(folder, tmp_path, {"x": peft}, InvalidModelError, says)
    weights = write_peft(tmp_path / "cut", tensors) / "adapter_model.safetensors"
    for share in (0, 0.01, 0.5):
        weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
        refused(
            folder, tmp_path, {"x": tmp_path / "cut"}, InvalidModelError, "has no whole adapter"
        )
    weights.rename(weights.with_name("adapter_model.bin"))
    refused(folder, tmp_path, {"x": tmp_path / "cut"}, InvalidModelError, "Pickled weights are not")


def test_numbers_that_are_too_large_once_they_are_scaled(
    folder: Path, tmp_path: Path, warm: dict[str, Delta]
) -> None:
    tensors = {name: tensor * np.float32(1e36) for name, tensor in peft_tensors(warm).items()}
    peft = write_peft(tmp_path / "peft", tensors, lora_alpha=1e6)
    says = "has numbers in .* that are not finite, or too large for float32"
    refused(folder, tmp_path, {"x": peft}, InvalidModelError, says)


def place(start: int, end: int) -> Callable[[dict[str, Any]], Any]:
    return lambda tensor: tensor.update(data_offsets=[start, end])


PLACES: dict[str, tuple[Callable[[dict[str, Any]], Any], int, str]] = {
    "bytes behind the last tensor": (dict.copy, 5 << 30, "and its tensors end at"),
    "bytes before the first": (place(4, 260), 0, "overlap, or bytes of none"),
    "tensors in one place": (place(256, 512), 0, "overlap, or bytes of none"),
    "a shape of other bytes": (lambda t: t.update(shape=[2, 2**62]), 0, "is not a safetensors"),
    "a thousand axes": (lambda t: t.update(shape=[64, *[1] * 1000]), 0, "is not a safetensors"),
}


@pytest.mark.parametrize(("change", "more", "says"), PLACES.values(), ids=PLACES)
def test_a_file_whose_bytes_are_not_its_tensors_is_not_read(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], more: int, says: str
) -> None:
    """The tensors of 256 bytes each lie one behind the other."""
    names = [peft_name(LAYERS[0], half) for half in "AB"]
    tensors = {name: np.zeros((8, 8), dtype=np.float32) for name in names}
    weights = write_peft(tmp_path / "peft", tensors) / "adapter_model.safetensors"
    content = weights.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    change(header[names[0]])
    head = json.dumps(header).encode()
    with weights.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head + content[length:])
        file.truncate(file.tell() + more)  # sparse: it takes no place
    refused(folder, tmp_path, {"x": weights.parent}, InvalidModelError, says)


def test_a_graph_whose_inputs_are_no_halves_in_float(
    demo: Path, tmp_path: Path, warm: dict[str, Delta]
) -> None:
    """As those are that the builder and Olive make of a model in int4."""
    folder = open_for_adapters(demo, tmp_path / "model", form="{layer}.lora_{half}.weight_Q4")
    peft = write_peft(tmp_path / "peft", peft_tensors(warm))
    says = "cannot be converted, because the graph's inputs for adapters, such as .*_Q4, are not"
    refused(folder, tmp_path, {"x": peft}, InvalidModelError, says)


def test_queries_keys_and_values_of_different_widths(tmp_path: Path) -> None:
    """Phi-3's checkpoints have them as one layer; the graph with adapters as three."""
    widths = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
    shapes = {
        f"model.layers.3.attn.{part}.lora_{half}.MatMul.weight": shape
        for part, outside in widths.items()
        for half, shape in (("A", (6, "lora_r")), ("B", ("lora_r", outside)))
    }
    graph = GraphFacts(inputs=dict.fromkeys(shapes, 10), shapes=shapes, optional=frozenset(shapes))
    random = np.random.default_rng(0)
    a = random.normal(size=(2, 6)).astype(np.float32)
    b = random.normal(size=(16, 2)).astype(np.float32)
    layer = "model.layers.3.attn.qkv_proj"
    tensors = {peft_name(layer, "A"): a, peft_name(layer, "B"): b}
    peft = write_peft(tmp_path / "peft", tensors, lora_alpha=6)
    converted = convert_peft(peft, graph, "x")
    assert converted.keys() == graph.optional
    for part, rows in (("q_proj", b[:8]), ("k_proj", b[8:12]), ("v_proj", b[12:])):
        halves = [converted[f"model.layers.3.attn.{part}.lora_{x}.MatMul.weight"] for x in "AB"]
        assert {half.dtype for half in halves} == {np.dtype(np.float16)}
        np.testing.assert_array_equal(halves[0], a.T.astype(np.float16))
        np.testing.assert_array_equal(halves[1], (rows.T * 3).astype(np.float16))


@pytest.mark.export
@pytest.mark.skipif(not can_build(), reason="building a model needs the export extra")
def test_an_adapter_of_peft_answers_as_a_checkpoint_that_it_is_merged_into(tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    source = checkpoint_folder(TINY)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    weights = model.state_dict()
    random = np.random.default_rng(0)
    deltas: dict[str, Delta] = {}
    for layer in ("model.layers.0.mlp.gate_up_proj", "model.layers.1.attn.qkv_proj"):
        weight = weights[f"{layer.replace('.attn.', '.self_attn.')}.weight"]
        outside, inside = weight.shape
        a = random.normal(0, 0.1, (inside, 4)).astype(np.float32)
        b = random.normal(0, 0.1, (4, outside)).astype(np.float32)
        deltas[layer] = (a, b)
        weight += 2 * torch.from_numpy((a @ b).T)
    model.save_pretrained(tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, tmp_path / "checkpoint")
    merged = tmp_path / "merged"
    mlflow_phi3_onnx.save_model(tmp_path / "checkpoint", merged, precision="fp32")
    layers = [f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up")]
    folder = open_for_adapters(
        model_folder("tiny-fp32"), tmp_path / "open", [*layers, "model.layers.1.attn.qkv_proj"]
    )
    peft = write_peft(tmp_path / "peft", peft_tensors(deltas), lora_alpha=8)
    fields: dict[str, Any] = {"prompt": "The sea is", "max_tokens": 24, "logprobs": 0}
    with GenAIModel(merged / "model") as reference:
        (wanted,) = reference.complete(**fields)["choices"]
    with GenAIModel(folder, adapters={"x": peft}) as adapted:
        (base,) = adapted.complete(**fields)["choices"]
        (answer,) = adapted.complete(**fields, adapter="x")["choices"]
    assert answer["text"] == wanted["text"] != base["text"]
    assert answer["logprobs"]["token_logprobs"] == pytest.approx(
        wanted["logprobs"]["token_logprobs"], abs=1e-3
    )
