"""Tiny models of random weights, of the families that the demo model is not of. Built with onnx."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.edits import edit_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Graph", "convolution", "gpt2", "growing", "pipeline"]

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
MICROSOFT = "com.microsoft"
CONTEXT, HEADS, WIDTH, LAYERS = 256, 2, 32, 2
HEAD = WIDTH // HEADS

Tensor = tuple[str, int, list[Any] | None]


class Graph:
    """Writes a graph node by node; calling it adds one and returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._count = 0

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        self._count += 1
        name = f"constant{self._count}"
        self._initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def default(self, name: str, value: Any) -> None:
        """Give an input a default."""
        self._initializers.append(numpy_helper.from_array(value, name))

    def weight(self, *shape: int, scale: float | None = None) -> str:
        values = self._random.normal(0, scale or shape[0] ** -0.5, shape)
        return self.constant(values, np.float32)

    def __call__(
        self, operator: str, *inputs: str, out: Sequence[str] = (), domain: str = "", **options: Any
    ) -> str:
        self._count += 1
        names = list(out) or [f"{operator}{self._count}"]
        node = helper.make_node(operator, list(inputs), names, domain=domain, **options)
        self._nodes.append(node)
        return names[0]

    def size(self, tensor: str, axis: int) -> str:
        return self("Gather", self("Shape", tensor), self.constant(axis), axis=0)

    def heads(self, x: str, width: int, heads: int) -> str:
        """Project to ``(batch, heads, sequence, width / heads)``."""
        split = self.constant([0, 0, heads, width // heads])
        wide = self("Reshape", self("MatMul", x, self.weight(width, width)), split)
        return self("Transpose", wide, perm=[0, 2, 1, 3])

    def attention(self, query: str, keys: str, values: str) -> str:
        """Attend over a cache that holds the newest tokens too, with a mask and causally."""
        total = self.size(keys, 2)
        first = self("Sub", total, self.size(query, 2))
        one, zero = self.constant(1), self.constant(0)
        columns = self("Unsqueeze", self("Range", zero, total, one), self.constant([0]))
        rows = self("Unsqueeze", self("Range", first, total, one), self.constant([1]))
        mask = self("Greater", "attention_mask", self.constant(0))
        seen = self("And", self("LessOrEqual", columns, rows), self("Unsqueeze", mask, self.axes))
        scores = self("MatMul", query, self("Transpose", keys, perm=[0, 1, 3, 2]))
        hidden = self.constant(-1e4, np.float32)
        shares = self("Softmax", self("Where", seen, scores, hidden), axis=-1)
        mixed = self("Transpose", self("MatMul", shares, values), perm=[0, 2, 1, 3])
        return self("Reshape", mixed, self.constant([0, 0, WIDTH]))

    @property
    def axes(self) -> str:
        return self.constant([1, 2])

    def save(self, file: Path, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        taken, given = (
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in tensors]
            for tensors in (inputs, outputs)
        )
        graph = helper.make_graph(self._nodes, file.stem, taken, given, self._initializers)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), file)


def growing(folder: Path, demo: Path) -> Path:
    """A decoder whose cache is ``Concat(past, new)``, as Optimum's and onnx-community's."""
    vocabulary = _folder(folder, demo, "llama", {"position_ids": "position_ids"})
    graph = Graph(1)
    places = graph("Gather", graph.weight(CONTEXT, WIDTH), "position_ids")
    words = graph("Gather", graph.weight(vocabulary, WIDTH, scale=1.0), "input_ids")
    x = graph("Add", words, places)
    for layer in range(LAYERS):
        keys, values = (
            graph(
                "Concat",
                f"past_key_values.{layer}.{kind}",
                graph.heads(x, WIDTH, HEADS),
                out=[f"present.{layer}.{kind}"],
                axis=2,
            )
            for kind in ("key", "value")
        )
        x = graph("Add", x, graph.attention(graph.heads(x, WIDTH, HEADS), keys, values))
    graph("MatMul", x, graph.weight(WIDTH, vocabulary), out=["logits"])
    graph.save(
        folder / "model.onnx",
        [*_INPUTS, _PLACES, *_cache("past_key_values", range(LAYERS), "p")],
        [("logits", FLOAT, ["b", "s", vocabulary]), *_cache("present", range(LAYERS), "t")],
    )
    return folder


def gpt2(folder: Path, demo: Path) -> Path:
    """A decoder as GPT-2's: keys and values in one tensor, and an embedding that reads every id."""
    names = {"position_ids": "position_ids", "past_names": "past_%d"}
    vocabulary = _folder(folder, demo, "gpt2", names, {"present_names": "present_%d"})
    graph = Graph(2)
    x = graph(
        "EmbedLayerNormalization",
        graph("Cast", "input_ids", to=INT32),
        "",
        graph.weight(vocabulary, WIDTH, scale=1.0),
        graph.weight(CONTEXT, WIDTH, scale=1.0),
        "",
        graph.constant(np.ones(WIDTH), np.float32),
        graph.constant(np.zeros(WIDTH), np.float32),
        "",
        graph("Cast", "position_ids", to=INT32),
        out=["embedded", "mask_index"],
        domain=MICROSOFT,
    )
    for layer in range(LAYERS):
        pair = [
            graph("Unsqueeze", graph.heads(x, WIDTH, HEADS), graph.constant([0])) for _ in range(2)
        ]
        new = graph("Concat", *pair, axis=0)
        both = graph("Concat", f"past_{layer}", new, out=[f"present_{layer}"], axis=3)
        keys, values = (graph("Gather", both, graph.constant(i), axis=0) for i in (0, 1))
        x = graph("Add", x, graph.attention(graph.heads(x, WIDTH, HEADS), keys, values))
    graph("MatMul", x, graph.weight(WIDTH, vocabulary), out=["logits"])

    def cache(name: str, length: str) -> list[Tensor]:
        shape = [2, "b", HEADS, length, HEAD]
        return [(f"{name}_{layer}", FLOAT, shape) for layer in range(LAYERS)]

    graph.save(
        folder / "model.onnx",
        [*_INPUTS, _PLACES, *cache("past", "p")],
        [("logits", FLOAT, ["b", "s", vocabulary]), *cache("present", "t")],
    )
    return folder


def convolution(folder: Path, demo: Path) -> Path:
    """A decoder as LFM2's: a layer with a state of fixed size, and one with keys and values."""
    names = {"past_conv_names": "past_conv.%d"}
    vocabulary = _folder(folder, demo, "lfm2", names, {"present_conv_names": "present_conv.%d"})
    edit_json(
        folder / "genai_config.json",
        lambda c: c["model"]["decoder"].update(
            layer_types=["conv", "full_attention"], conv_cache_size=2
        ),
    )
    graph = Graph(3)
    x = graph("Gather", graph.weight(vocabulary, WIDTH, scale=1.0), "input_ids")
    columns = graph("Transpose", x, perm=[0, 2, 1])
    with_past = graph("Concat", "past_conv.0", columns, axis=2)
    end = graph.constant([np.iinfo(np.int64).max])
    graph(
        "Slice", with_past, graph.constant([-2]), end, graph.constant([2]), out=["present_conv.0"]
    )
    mixed = graph("Conv", with_past, graph.weight(WIDTH, 1, 3, scale=1.0), group=WIDTH)
    x = graph("Add", x, graph("Transpose", mixed, perm=[0, 2, 1]))
    keys, values = (
        graph(
            "Concat",
            f"past_key_values.1.{kind}",
            graph.heads(x, WIDTH, HEADS),
            out=[f"present.1.{kind}"],
            axis=2,
        )
        for kind in ("key", "value")
    )
    x = graph("Add", x, graph.attention(graph.heads(x, WIDTH, HEADS), keys, values))
    graph("MatMul", x, graph.weight(WIDTH, vocabulary), out=["logits"])
    state: list[Any] = ["b", WIDTH, 2]
    graph.save(
        folder / "model.onnx",
        [*_INPUTS, ("past_conv.0", FLOAT, state), *_cache("past_key_values", [1], "p")],
        [
            ("logits", FLOAT, ["b", "s", vocabulary]),
            ("present_conv.0", FLOAT, state),
            *_cache("present", [1], "t"),
        ],
    )
    return folder


def pipeline(folder: Path, demo: Path) -> Path:
    """The demo model in three graphs, as models for NPUs are split."""
    shutil.copytree(demo, folder)
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx"))
    names = [[v.name for v in values] for values in (model.graph.input, model.graph.output)]
    inputs, outputs = names
    nodes = model.graph.node
    embedded = next(n.output[0] for n in nodes if "input_ids" in n.input and "Gather" in n.op_type)
    hidden = next(n.input[0] for n in nodes if "logits" in n.output)
    known = {value.name for value in model.graph.value_info}
    for name in {embedded, hidden} - known:
        model.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, ["b", "s", 192]))
    stages = {
        "embeddings": (["input_ids"], [embedded]),
        "transformer": (
            [embedded, *(name for name in inputs if name != "input_ids")],
            [hidden, *(name for name in outputs if name != "logits")],
        ),
        "lm_head": ([hidden], ["logits"]),
    }
    extractor = onnx.utils.Extractor(model)
    for stage, (taken, given) in stages.items():
        onnx.save(extractor.extract_model(taken, given), folder / f"{stage}.onnx")

    def split(config: dict[str, Any]) -> None:
        config["model"]["type"] = "decoder-pipeline"
        decoder = config["model"]["decoder"]
        del decoder["filename"]
        parts = {
            stage: {"filename": f"{stage}.onnx", "inputs": taken, "outputs": given}
            for stage, (taken, given) in stages.items()
        }
        decoder["pipeline"] = [parts]

    edit_json(folder / "genai_config.json", split)
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).unlink(missing_ok=True)
    return folder


_INPUTS: list[Tensor] = [
    ("input_ids", INT64, ["b", "s"]),
    ("attention_mask", INT64, ["b", "t"]),
]
_PLACES: Tensor = ("position_ids", INT64, ["b", "s"])


def _cache(name: str, layers: Sequence[int], length: str) -> list[Tensor]:
    shape = ["b", HEADS, length, HEAD]
    names = [f"{name}.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    return [(each, FLOAT, shape) for each in names]


def _folder(
    folder: Path,
    demo: Path,
    kind: str,
    inputs: dict[str, str],
    outputs: dict[str, str] | None = None,
) -> int:
    """Write everything but the graph; return the size of the vocabulary."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder / name)
    config = json.loads((demo / "genai_config.json").read_text(encoding="utf-8"))
    model = config["model"]
    model.update(type=kind, context_length=CONTEXT)
    model["decoder"].update(
        num_hidden_layers=LAYERS,
        num_key_value_heads=HEADS,
        num_attention_heads=HEADS,
        head_size=HEAD,
        hidden_size=WIDTH,
    )
    model["decoder"]["inputs"].update(inputs)
    model["decoder"]["outputs"].update(outputs or {})
    config["search"].update(past_present_share_buffer=False, max_length=CONTEXT)
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return model["vocab_size"]
