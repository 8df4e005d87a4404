"""Tiny models of onnxruntime-genai's types phi3v and phi4mm, of random weights. Built with onnx.

Their vision and speech graphs only load: no test shows them anything yet.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import helper

from tests.support import folders
from tests.support.tiny import FLOAT, INT32, INT64, MICROSOFT, Graph

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.tiny import Tensor

__all__ = ["CONTEXT", "FIRST_RANGE", "IMAGE", "multimodal"]

CONTEXT, FIRST_RANGE = 128, 40
"""Tokens of context, and of the original one, after which all positions have other factors."""

WIDTH, HEADS, LAYERS, RANK = 64, 2, 2, 2
HEAD = WIDTH // HEADS
IMAGE = "<|image|>"
"""A control token that stands for an image."""


def multimodal(
    folder: Path, kind: Literal["phi3v", "phi4mm"], *, adapters: Literal["read", "ignored", ""] = ""
) -> Path:
    """Write a model with two ranges of positions.

    Args:
        folder: Where to.
        kind: phi3v takes images, phi4mm sounds too.
        adapters: Whether the decoder has inputs for an adapter, and reads them.
    """
    tokenizer = folders.byte_level()
    tokenizer.add_special_tokens([IMAGE])
    folders.write(folder, tokenizer)
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    vocabulary = max(ids.values()) + 1
    audio = kind == "phi4mm"
    _decoder(folder / "text.onnx", vocabulary, adapters)
    _embedding(folder / "embedding.onnx", vocabulary, audio=audio)
    _features(folder / "vision.onnx", _PIXELS, "image_features", ["t", WIDTH])
    (folder / "vision.json").write_text("{}", encoding="utf-8")
    model: dict[str, Any] = {
        "type": kind,
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "pad_token_id": ids["<|stop|>"],
        "eos_token_id": ids["<|end|>"],
        "decoder": {
            "filename": "text.onnx",
            "head_size": HEAD,
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": HEADS,
            "inputs": {"inputs_embeds": "inputs_embeds", "attention_mask": "attention_mask"},
        },
        "embedding": {"filename": "embedding.onnx"},
        "vision": {"filename": "vision.onnx", "config_filename": "vision.json"},
    }
    if audio:
        _features(folder / "speech.onnx", _SOUNDS, "audio_features", ["one", "t", WIDTH])
        (folder / "speech.json").write_text("{}", encoding="utf-8")
        model["speech"] = {"filename": "speech.onnx", "config_filename": "speech.json"}
        model["image_token_id"] = ids[IMAGE]
    search = {"max_length": CONTEXT, "past_present_share_buffer": True}
    config = json.dumps({"model": model, "search": search})
    (folder / "genai_config.json").write_text(config, encoding="utf-8")
    return folder


def _decoder(file: Path, vocabulary: int, adapters: str) -> None:
    graph = Graph(4)
    total = graph.size("attention_mask", 1)
    cos, sin = _factors(graph, total)
    real = graph("ReduceSum", "attention_mask", graph.constant([1]), keepdims=1)
    lengths = graph("Cast", graph("Sub", real, graph.constant([1])), to=INT32)
    total = graph("Cast", total, to=INT32)
    x = "inputs_embeds"
    for layer in range(LAYERS):
        mixed = graph(
            "GroupQueryAttention",
            graph("MatMul", _normal(graph, x), graph.weight(WIDTH, 3 * WIDTH)),
            "",
            "",
            *(f"past_key_values.{layer}.{kind}" for kind in ("key", "value")),
            lengths,
            total,
            cos,
            sin,
            out=[f"mixed{layer}", f"present.{layer}.key", f"present.{layer}.value"],
            domain=MICROSOFT,
            num_heads=HEADS,
            kv_num_heads=HEADS,
            do_rotary=1,
        )
        x = graph("Add", x, graph("MatMul", mixed, graph.weight(WIDTH, WIDTH)))
        if adapters:
            change = graph("MatMul", graph("MatMul", x, f"{layer}.lora_A"), f"{layer}.lora_B")
            nothing = graph("Mul", change, graph.constant(0, np.float32))
            x = graph("Add", x, change if adapters == "read" else nothing)
    graph("MatMul", _normal(graph, x), graph.weight(WIDTH, vocabulary), out=["logits"])
    matrices: list[Tensor] = []
    for layer in range(LAYERS) if adapters else ():
        for part, shape in (("A", [WIDTH, RANK]), ("B", [RANK, WIDTH])):
            name = f"{layer}.lora_{part}"
            matrices.append((name, FLOAT, list(shape)))
            graph.default(name, np.zeros(shape, np.float32))
    graph.save(
        file,
        [("inputs_embeds", FLOAT, ["b", "s", WIDTH]), _MASK, *_cache("past_key_values"), *matrices],
        [("logits", FLOAT, ["b", "s", vocabulary]), *_cache("present")],
    )


def _factors(graph: Graph, total: str) -> list[str]:
    """Rotary tables: others where there are more tokens than the first range has."""
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2)))
    branches: dict[str, Any] = {}
    for name, scale in (("then_branch", 4), ("else_branch", 1)):
        tables = [graph.constant(f(angles / scale), np.float32) for f in (np.cos, np.sin)]
        outs = [f"{name}{i}" for i in range(2)]
        copies = [helper.make_node("Identity", [t], [o]) for t, o in zip(tables, outs, strict=True)]
        infos = [helper.make_tensor_value_info(out, FLOAT, None) for out in outs]
        branches[name] = helper.make_graph(copies, name, [], infos)
    beyond = graph("Greater", total, graph.constant(FIRST_RANGE))
    graph("If", beyond, out=["cos", "sin"], **branches)
    return ["cos", "sin"]


def _normal(graph: Graph, x: str) -> str:
    ones = graph.constant(np.ones(WIDTH), np.float32)
    return graph("SimplifiedLayerNormalization", x, ones, axis=-1, epsilon=1e-5)


def _embedding(file: Path, vocabulary: int, *, audio: bool) -> None:
    """Look ids up; those that stand for an image or a sound take its features, in order."""
    graph = Graph(5)
    known = graph("Max", "input_ids", graph.constant(0))
    known = graph("Min", known, graph.constant(vocabulary - 1))
    x = graph("Gather", graph.weight(vocabulary, WIDTH, scale=1.0), known)
    places = {"image_features": graph("Less", "input_ids", graph.constant(0))}
    if audio:
        for number, name in enumerate(("image_features", "audio_features")):
            places[name] = graph("Equal", "input_ids", graph.constant(200010 + number))
    for name, mask in places.items():
        at = graph("Transpose", graph("NonZero", mask), perm=[1, 0])
        x = graph("ScatterND", x, at, name)
    graph("Identity", x, out=["inputs_embeds"])
    features: list[Tensor] = [(name, FLOAT, ["n", WIDTH]) for name in places]
    graph.save(
        file,
        [("input_ids", INT64, ["b", "s"]), *features],
        [("inputs_embeds", FLOAT, ["b", "s", WIDTH])],
    )


def _features(file: Path, inputs: list[Tensor], out: str, shape: list[Any]) -> None:
    graph = Graph(6)
    size = graph.constant([1] * (len(shape) - 2) + [1, WIDTH])
    graph("ConstantOfShape", size, out=[out])
    graph.save(file, inputs, [(out, FLOAT, shape)])


_MASK: Tensor = ("attention_mask", INT64, ["b", "t"])
_PIXELS: list[Tensor] = [
    ("pixel_values", FLOAT, ["n", "crops", 3, "h", "w"]),
    ("image_sizes", INT64, ["n", 2]),
]
_SOUNDS: list[Tensor] = [
    ("audio_embeds", FLOAT, ["n", "frames", 80]),
    ("audio_sizes", INT64, ["n"]),
]


def _cache(name: str) -> list[Tensor]:
    shape = ["b", HEADS, f"{name}_length", HEAD]
    names = [f"{name}.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
    return [(each, FLOAT, shape) for each in names]
